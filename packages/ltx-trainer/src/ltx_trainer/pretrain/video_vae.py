"""The video VAE from nothing: reconstruct clips through a latent that is held near a normal distribution.

The loss is absolute plus squared error, with pixels that stand out from their row weighed up so that small things are
not taken for noise, plus a light Kullback-Leibler term. When it is exported the per-channel statistics are measured,
so that a latent leaves the encoder with mean 0 and spread 1 in every channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.ops import use_channels_last
from ltx_core.model.video_vae.video_vae import LatentDistribution, VideoDecoder, VideoEncoder
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.pictures import frames_sheet
from ltx_trainer.pretrain.task import STATISTICS, PretrainTask, Spread, prefixed

STANDS_OUT = 0.15  # distance from the row's mean, of a range of 2


@dataclass(frozen=True)
class VideoVaeLoss:
    """Weights of the loss's terms."""

    squared: float = 2.0
    detail: float = 4.0  # extra weight of pixels that stand out
    kl: float = 1e-3


class VideoVae(nn.Module):
    """Both halves. Training works on raw latents: the statistics stay at mean 0 and spread 1 until export."""

    def __init__(self, config: VideoVaeConfig, loss: VideoVaeLoss) -> None:
        super().__init__()
        self.encoder, self.decoder, self.loss = VideoEncoder(config), VideoDecoder(config), loss
        use_channels_last(self)

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """``batch["video"]`` uint8 ``[B, 3, F, H, W]`` to losses."""
        video = self.pixels(batch["video"])
        latent = self.encoder.moments(video)
        noise = draws.randn(latent.mean.shape)
        error = self.decoder(latent.sample(noise)).float() - video
        weight = 1 + self.loss.detail * stands_out(video)
        weight = weight / weight.mean()
        absolute, squared = (weight * error.abs()).mean(), (weight * error.square()).mean()
        kl = kl_to_normal(latent)
        total = absolute + self.loss.squared * squared + self.loss.kl * kl
        return {"loss": total, "absolute": absolute, "squared": squared, "kl": kl}

    def pixels(self, video: Tensor) -> Tensor:
        """uint8 to [-1, 1] on the weights' device, channels-last."""
        device = self.encoder.conv_in.conv.weight.device
        pixels = video.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
        return pixels.contiguous(memory_format=torch.channels_last_3d)

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
        loss: VideoVaeLoss | None = None,
        statistics_batches: int = 16,
    ) -> None:
        module = VideoVae(VideoVaeConfig.from_metadata(config), loss or VideoVaeLoss())
        super().__init__(module, examples)
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
        both = prefixed("vae.encoder.", encoder) | prefixed("vae.decoder.", decoder)
        tensors = {name: tensor for name, tensor in both.items() if STATISTICS not in name}
        return tensors | prefixed(f"vae.{STATISTICS}", self.statistics())

    def config(self) -> dict[str, Any]:
        return {"vae": self.given_config["vae"]}

    def statistics(self) -> dict[str, Tensor]:
        """Mean and spread ``[C]`` of every raw latent channel over training clips of the last stage."""
        first, spread = self.examples.curriculum.steps, Spread()
        for position in range(first, first + self.statistics_batches):
            video = self.module.pixels(self.examples.batch(position)["video"])
            spread.add(self.module.encoder.moments(video).mean.transpose(0, 1).flatten(1))
        return spread.tensors()


class VideoDecoderTask(VideoVaeTask):
    """Train the decoder of a finished VAE further. The encoder and the statistics stay, so latents keep their meaning.

    ``trained`` is the file that a `VideoVaeTask` of the same config exported.
    """

    name = "video_decoder"

    def __init__(
        self,
        config: Mapping[str, Any],
        trained: Path,
        examples: Examples,
        held_out: Sequence[Tensor] = (),
        loss: VideoVaeLoss | None = None,
    ) -> None:
        super().__init__(config, examples, held_out, loss)
        file, prefix = SafetensorsFile(trained), f"vae.{STATISTICS}"
        self.kept = {name.removeprefix(prefix): file.read(name) for name in file.tensors if name.startswith(prefix)}
        raw = self.module.state_dict()  # at mean 0 and spread 1
        self.module.load_state_dict(
            {name: raw[name] if STATISTICS in name else file.read(f"vae.{name}") for name in raw}
        )
        self.module.encoder.requires_grad_(False)

    def statistics(self) -> dict[str, Tensor]:
        """Those of the finished VAE."""
        return self.kept


def stands_out(video: Tensor) -> Tensor:
    """1 where a pixel differs from its row's mean, else 0: ``[B, 1, F, H, W]``."""
    return ((video - video.mean(dim=-1, keepdim=True)).abs().amax(dim=1, keepdim=True) > STANDS_OUT).float()


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
