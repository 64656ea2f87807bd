"""What each saving brings: both arms in one process, in alternating order. ``python -m benchmarks`` prints tables."""
