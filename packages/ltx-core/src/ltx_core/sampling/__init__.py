"""Sampling: from noisy states to denoised ones, in one loop that pipelines and validation share.

stage.py        the ends of a stage: conditions and noise before the loop, latents after it
loop.py         the loop, an iterator over steps
samplers.py     how one step is made: Euler, Heun, gradient estimating, ancestral, CFG++, res_2s
denoisers.py    one x0 prediction per stream, with guidance
velocity.py     guidance on velocities and noise levels per token, for LTX-Video
modality.py     a state as the transformer's input, and its result held to the clean tokens
modality_tiling.py   tokens of a big video in overlapping tiles
cheaper.py      what leaves work out of the transformer
release.py      letting go of held tokens while sigma falls
"""
