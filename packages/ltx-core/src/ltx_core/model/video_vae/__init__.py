"""The video VAE: pixels to a 128-channel latent and back."""
