"""Datasets, training strategies, the training loop and validation for LTX-2."""
