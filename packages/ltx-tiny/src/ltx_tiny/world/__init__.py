"""The toy world: scenes, their pictures and sounds, and the sentences that describe them."""
