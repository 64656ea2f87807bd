"""Diffusion maths on tokens: patchifiers, schedules, guiders, noisers, steps, constants per model version."""
