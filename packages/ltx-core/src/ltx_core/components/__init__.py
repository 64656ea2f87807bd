"""Diffusion maths on tokens: patchifiers, sigma schedules, guiders, noisers, diffusion steps, tables per model version."""
