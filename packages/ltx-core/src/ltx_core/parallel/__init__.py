"""One clip on many devices: what is shared out stands beside the networks, which know nothing of it."""
