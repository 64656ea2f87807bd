"""Training each network from nothing: small tasks for the one loop, sharing one way to feed and to look at them."""
