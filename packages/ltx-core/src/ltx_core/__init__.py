"""LTX-2 core: networks, diffusion maths, conditioning, checkpoint loading and the denoising loop."""

__version__ = "0.1.0"  # of every package of the workspace
