"""Gain of each optimization: both arms in one process, in alternating order. ``python -m benchmarks`` prints tables."""
