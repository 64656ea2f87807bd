"""LTX-2 core: networks, diffusion maths, conditioning, checkpoint loading and the denoising loop."""
