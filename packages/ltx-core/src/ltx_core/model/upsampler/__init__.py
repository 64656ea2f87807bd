"""The latent upsampler: a larger or denser video latent without going through pixels."""
