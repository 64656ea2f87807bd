"""The bundled map from latents to pixels: least squares on clips of the toy world that the model's VAE encodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_pipelines.running.preview import SIDE, PreviewMap, Sums
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_tiny.examples import FPS, FRAMES
from ltx_tiny.world.picture import draw
from ltx_tiny.world.scene import sample_scene

SEED, EXTENT = 98, 256


def fit(ledger: ModelLedger, count: int) -> PreviewMap:
    """A map that has seen ``count`` scenes."""
    sums = Sums.empty(ledger.latent_channels)
    for latent, frames in encode(ledger, range(count)):
        sums = sums.seeing(latent, frames)
    return sums.solve()


def encode(ledger: ModelLedger, scenes: range, length: int = FRAMES) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents ``[1, C, F, h, w]`` of scenes, with the frame of each latent frame, ``[F, 4h, 4w, 3]`` in [0, 1]."""
    encoder, step = ledger.network("video_encoder"), ledger.scale_factors.time
    for number in scenes:
        scene = sample_scene(np.random.default_rng((SEED, number)))
        frames = torch.from_numpy(draw(scene, length, EXTENT, EXTENT, FPS)).float() / 255
        with torch.no_grad():
            latent = encoder(frames.permute(3, 0, 1, 2)[None].mul(2).sub(1).to(ledger.dtype))
        size = [SIDE * side for side in latent.shape[3:]]
        small = F.interpolate(frames[::step].permute(0, 3, 1, 2), size, mode="area")
        yield latent, small.permute(0, 2, 3, 1)
