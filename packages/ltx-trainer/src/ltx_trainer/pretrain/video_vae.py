"""The video VAE from nothing: clips to a latent that is taught, and back.

A data set may give a ``code`` with every clip: what the first channels of its latent ought to be. The encoder learns to
say it and the decoder to draw from it, sometimes from the code itself and sometimes from what the encoder said, always
with a little noise, since a transformer will not hit it exactly. Channels that no code asks for stay at nothing: the
encoder gives 0 there and the decoder does not look. Without a code all channels are free and held near a normal
distribution.

The picture's loss is absolute plus squared error plus the error of its slopes, with pixels that stand out from their
row weighed up so that small things are not taken for noise. Without a code the per-channel statistics are measured on
export, so that a latent leaves the encoder with mean 0 and spread 1 in every channel; a code is taken as it is.
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
from ltx_trainer.pretrain.task import STATISTICS, PretrainTask, Spread, add_prefix, read_first, say_first

TAUGHT_LOG_VARIANCE = -6.0  # what an encoder says of a taught latent
STANDS_OUT = 0.15  # distance from the row's mean, of a range of 2


@dataclass(frozen=True)
class VideoVaeLoss:
    """Weights of the loss's terms, and how the decoder's input is made where there is a code."""

    squared: float = 2.0
    detail: float = 4.0  # extra weight of pixels that stand out
    slope: float = 1.0
    kl: float = 1e-3
    code: float = 1.0
    code_share: float = 0.5  # of examples that are decoded from the code itself
    noise: float = 0.1  # largest spread of what is added to a taught latent


class VideoVae(nn.Module):
    """Both halves. Training works on raw latents: the statistics stay at mean 0 and spread 1 until export.

    ``code_channels`` of the latent are taught; 0 teaches none.
    """

    def __init__(self, config: VideoVaeConfig, loss: VideoVaeLoss, code_channels: int = 0) -> None:
        super().__init__()
        self.encoder, self.decoder, self.loss = VideoEncoder(config), VideoDecoder(config), loss
        self.code_channels = code_channels
        use_channels_last(self)
        if code_channels:
            say_first(self.encoder.conv_out.conv, code_channels)
            read_first(self.decoder.conv_in.conv, code_channels)
            with torch.no_grad():
                self.encoder.conv_out.conv.get_parameter("bias")[config.latent_channels :] = TAUGHT_LOG_VARIANCE

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """``batch["video"]`` uint8 ``[B, 3, F, H, W]``, with its ``code`` ``[B, c, f, h, w]`` if taught, to losses."""
        video = self.pixels(batch["video"])
        latent = self.encoder.moments(video)
        noise = draws.randn(latent.mean.shape)
        if self.code_channels:
            z, kept = self.taught_latent(latent.mean.float(), batch["code"], noise, draws)
            terms = {"code": (self.loss.code, kept)}
        else:
            z = latent.sample(noise)
            terms = {"kl": (self.loss.kl, kl_to_normal(latent))}
        made = self.decoder(z).float()
        weight = 1 + self.loss.detail * stands_out(video)
        weight = weight / weight.mean()
        error = made - video
        terms["absolute"] = (1.0, (weight * error.abs()).mean())
        terms["squared"] = (self.loss.squared, (weight * error.square()).mean())
        terms["slope"] = (self.loss.slope, slope_error(error, weight))
        total = torch.stack([factor * term for factor, term in terms.values()]).sum()
        return {"loss": total, **{name: term for name, (_, term) in terms.items()}}

    def taught_latent(self, said: Tensor, code: Tensor, noise: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The latent to decode, of what the encoder ``said`` and of the code, and the error of what was said."""
        count = self.code_channels
        code = code.to(said)
        own = (draws.rand((len(code),)) < self.loss.code_share).view(-1, 1, 1, 1, 1).to(said.device)
        level = self.loss.noise * draws.rand((len(code),)).view(-1, 1, 1, 1, 1).to(said)
        z = torch.where(own, code, said[:, :count]) + level * noise[:, :count].to(said)
        silent = z.new_zeros(len(z), said.shape[1] - count, *z.shape[2:])
        difference = said[:, :count] - code
        return torch.cat([z, silent], dim=1), difference.square().mean() + difference.abs().mean()

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
        code_channels: int = 0,
    ) -> None:
        module = VideoVae(VideoVaeConfig.from_metadata(config), loss or VideoVaeLoss(), code_channels)
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
        both = add_prefix("vae.encoder.", encoder) | add_prefix("vae.decoder.", decoder)
        tensors = {name: tensor for name, tensor in both.items() if STATISTICS not in name}
        return tensors | add_prefix(f"vae.{STATISTICS}", self.statistics())

    def config(self) -> dict[str, Any]:
        return {"vae": self.given_config["vae"]}

    def statistics(self) -> dict[str, Tensor]:
        """Mean and spread ``[C]`` of every raw latent channel over training clips of the last stage; of a code 0, 1."""
        if self.module.code_channels:
            channels = self.module.encoder.config.latent_channels
            return {"mean-of-means": torch.zeros(channels), "std-of-means": torch.ones(channels)}
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
        code_channels: int = 0,
    ) -> None:
        super().__init__(config, examples, held_out, loss, code_channels=code_channels)
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
