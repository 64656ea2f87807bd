"""The networks of LTX-2 in MLX."""
