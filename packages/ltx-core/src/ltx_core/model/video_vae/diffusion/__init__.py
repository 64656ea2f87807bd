"""The diffusion decoder of LTX-2.5: neighbourhood attention, from latents and noise to pixels."""
