"""Predicts how long a shot naturally lasts."""
