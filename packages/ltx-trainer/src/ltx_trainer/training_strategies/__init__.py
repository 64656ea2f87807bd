"""Training examples: which tokens are noised, which are given, and where the loss is taken."""
