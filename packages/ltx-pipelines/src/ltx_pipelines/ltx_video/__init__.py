"""LTX-Video 0.9.x: text, pictures and clips to video without sound."""
