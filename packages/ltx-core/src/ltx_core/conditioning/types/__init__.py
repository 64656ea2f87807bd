"""The conditioning items, one module each."""
