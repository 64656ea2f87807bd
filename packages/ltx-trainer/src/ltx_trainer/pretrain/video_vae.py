"""The video VAE from nothing: clips to a latent that it finds by itself, and back.

The picture's loss is absolute plus squared error plus the error of its slopes, with pixels that stand out from their
row or change in time weighed up, so that small things and faint moves are not taken for noise. All channels are held
near a normal distribution. The per-channel statistics are measured on export, so that a latent leaves the encoder with
mean 0 and spread 1 in every channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.ops import use_channels_last
from ltx_core.model.video_vae.video_vae import LatentDistribution, VideoDecoder, VideoEncoder
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.pictures import frames_sheet
from ltx_trainer.pretrain.task import STATISTICS, PretrainTask, Spread, add_prefix

STANDS_OUT = 0.15  # distance from the row's mean, of a range of 2
CHANGES = 0.02  # distance from the mean over time
DETAIL = 4.0  # extra weight of pixels that stand out
SQUARED = 2.0  # weight of the squared error, beside 1 of the absolute one and 1 of that of slopes
KL = 1e-3  # weight of the distance from a normal distribution


class VideoVae(nn.Module):
    """Both halves. Training works on raw latents: the statistics stay at mean 0 and spread 1 until export."""

    def __init__(self, config: VideoVaeConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = VideoEncoder(config), VideoDecoder(config)
        use_channels_last(self)

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """``batch["video"]`` uint8 ``[B, 3, F, H, W]`` to losses."""
        video = self.pixels(batch["video"])
        latent = self.encoder.moments(video)
        terms = picture_losses(self.decoder(latent.sample(draws.randn(latent.mean.shape))).float(), video)
        kl = kl_to_normal(latent)
        return {**terms, "loss": terms["loss"] + KL * kl, "kl": kl}

    def pixels(self, video: Tensor) -> Tensor:
        """uint8 to [-1, 1] on the weights' device, channels-last."""
        return to_pixels(video, self.encoder.conv_in.conv.weight.device)

    def reconstruct(self, video: Tensor) -> Tensor:
        """uint8 ``[B, 3, F, H, W]`` through the mean latent and back, in [-1, 1]."""
        return self.decoder(self.encoder.moments(self.pixels(video)).mean).float().clamp(-1, 1)


class VideoVaeTask(PretrainTask):
    """Train a `VideoVae`; ``held_out`` are uint8 clips ``[B, 3, F, H, W]`` to judge it by."""

    name = "video_vae"
    module: VideoVae

    def __init__(
        self,
        config: Mapping[str, Any],
        examples: Examples,
        held_out: Sequence[Tensor] = (),
        statistics_batches: int = 16,
    ) -> None:
        super().__init__(VideoVae(VideoVaeConfig.from_metadata(config)), examples)
        self.given_config, self.held_out, self.statistics_batches = dict(config), tuple(held_out), statistics_batches

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for clips in self.held_out:
            after = [self.module.reconstruct(clip[None]) for clip in clips]
            before = [self.module.pixels(clip[None]) for clip in clips]
            ratios = [psnr(a, b) for a, b in zip(after, before, strict=True)]
            side = clips.shape[-1]
            figures[f"psnr_{side}"] = sum(ratios) / len(ratios)
            frames_sheet(folder / f"step_{step:06d}_{side}.png", torch.cat(before), torch.cat(after))
        return figures

    def tensors(self) -> dict[str, Tensor]:
        encoder, decoder = self.module.encoder.state_dict(), self.module.decoder.state_dict()
        both = add_prefix("vae.encoder.", encoder) | add_prefix("vae.decoder.", decoder)
        tensors = {name: tensor for name, tensor in both.items() if STATISTICS not in name}
        return tensors | add_prefix(f"vae.{STATISTICS}", self.statistics())

    def config(self) -> dict[str, Any]:
        return {"vae": self.given_config["vae"]}

    def statistics(self) -> dict[str, Tensor]:
        """Mean and spread ``[C]`` of every raw latent channel over training clips of the last stage."""
        first, spread = self.examples.curriculum.steps, Spread()
        for position in range(first, first + self.statistics_batches):
            video = self.module.pixels(self.examples.batch(position)["video"])
            spread.add(self.module.encoder.moments(video).mean.transpose(0, 1).flatten(1))
        return spread.tensors()


def to_pixels(video: Tensor, device: torch.device) -> Tensor:
    """uint8 clips ``[B, 3, F, H, W]`` to [-1, 1] on a device, channels-last."""
    pixels = video.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last_3d)


def picture_losses(made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """``loss`` and the terms it is the weighted sum of, of clips ``[B, 3, F, H, W]`` in about [-1, 1]."""
    weight = 1 + DETAIL * stands_out(true)
    weight = weight / weight.mean()
    error = made - true
    absolute = (weight * error.abs()).mean()
    squared = (weight * error.square()).mean()
    slope = slope_error(error, weight)
    return {"loss": absolute + SQUARED * squared + slope, "absolute": absolute, "squared": squared, "slope": slope}


def stands_out(video: Tensor) -> Tensor:
    """1 where a pixel differs from its row's mean or changes in time, else 0: ``[B, 1, F, H, W]``."""
    from_row, from_mean = ((video - video.mean(dim=axis, keepdim=True)).abs() for axis in (-1, 2))
    return ((from_row > STANDS_OUT) | (from_mean > CHANGES)).amax(dim=1, keepdim=True).float()


def slope_error(error: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference of neighbours along rows and columns of an error ``[B, 3, F, H, W]``: of its edges."""
    along = [(weight.narrow(axis, 1, error.shape[axis] - 1) * error.diff(dim=axis).abs()).mean() for axis in (3, 4)]
    return along[0] + along[1]


def kl_to_normal(latent: LatentDistribution) -> Tensor:
    """Mean Kullback-Leibler divergence to the standard normal, nats per latent value."""
    mean = latent.mean.float()
    if latent.logvar is None:
        return 0.5 * mean.square().mean()
    logvar = latent.logvar.float().clamp(-30.0, 20.0)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of signals in [-1, 1]."""
    return float(10 * torch.log10(4 / (a - b).square().mean().clamp(min=1e-10)))
