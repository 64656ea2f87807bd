"""Ways to steer a denoiser from outside, as data."""
