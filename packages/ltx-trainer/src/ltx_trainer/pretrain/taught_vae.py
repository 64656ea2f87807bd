"""A video VAE whose latent is taught: a data set gives a ``code`` with every clip, which its latent ought to be.

So its halves are trained one after the other. The decoder learns to draw from the code with noise, since neither an
encoder nor a transformer will hit it exactly. The encoder learns to say the code of what it sees, so that the decoder,
which stays as it is, draws that again. Channels that no code asks for stay at nothing: the encoder gives 0 there and
the decoder does not look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.ops import use_channels_last
from ltx_core.model.video_vae.video_vae import VideoDecoder, VideoEncoder
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Batch, Examples
from ltx_trainer.pretrain.pictures import frames_sheet
from ltx_trainer.pretrain.task import STATISTICS, PretrainTask, add_prefix, read_first, say_first
from ltx_trainer.pretrain.video_vae import picture_losses, psnr, to_pixels

LOG_VARIANCE = -6.0  # what the encoder says of every latent


class TaughtEncoder(nn.Module):
    """An encoder whose first ``code_channels`` are to be the code. ``config`` is a checkpoint's.

    ``decoder`` draws from codes and has no gradients of its own.
    """

    def __init__(self, config: Mapping[str, Any], code_channels: int, decoder: VideoDecoder) -> None:
        super().__init__()
        self.encoder, self.code_channels = VideoEncoder(VideoVaeConfig.from_metadata(config)), code_channels
        self.draw = partial(draw, decoder)  # not a module: its weights are no part of this one's
        use_channels_last(self)
        use_channels_last(decoder)
        last = self.encoder.conv_out.conv
        say_first(last, code_channels)
        with torch.no_grad():
            last.get_parameter("bias")[self.encoder.config.latent_channels :] = LOG_VARIANCE

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """``video`` uint8 ``[B, 3, F, H, W]`` and its ``code`` ``[B, c, f, h, w]`` to losses.

        ``drawable`` ``[B]`` is 1 where the decoder could draw the video and 0 where only its code counts.
        """
        said = self.say(batch["video"])
        difference = said - batch["code"].to(said)
        squared, absolute = difference.square().mean(), difference.abs().mean()
        drawable = batch["drawable"].to(said)[:, None, None, None, None]
        true = to_pixels(batch["video"], said.device) * drawable
        picture = picture_losses(self.draw(said) * drawable, true)["loss"]
        return {"loss": squared + absolute + picture, "squared": squared, "absolute": absolute, "picture": picture}

    def say(self, video: Tensor) -> Tensor:
        """The code ``[B, c, f, h, w]`` of uint8 clips, float32."""
        pixels = to_pixels(video, self.encoder.conv_in.conv.weight.device)
        return self.encoder.moments(pixels).mean[:, : self.code_channels].float()


class TaughtDecoder(nn.Module):
    """A decoder that reads a code in the first channels of its latent. ``config`` is a checkpoint's.

    ``doubts`` are the largest spreads, by channel, of the noise that is added to a code before it is drawn.
    """

    doubts: Tensor

    def __init__(self, config: Mapping[str, Any], doubts: Sequence[float]) -> None:
        super().__init__()
        self.decoder = VideoDecoder(VideoVaeConfig.from_metadata(config))
        self.register_buffer("doubts", torch.tensor(doubts), persistent=False)
        use_channels_last(self)
        read_first(self.decoder.conv_in.conv, len(doubts))

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """``video`` uint8 ``[B, 3, F, H, W]`` and its ``code`` ``[B, c, f, h, w]`` to losses."""
        device = self.decoder.conv_in.conv.weight.device
        code = batch["code"].to(device)
        level = draws.rand((len(code),)).to(code)[:, None] * self.doubts.to(code)
        made = draw(self.decoder, code + level[..., None, None, None] * draws.randn(code.shape).to(code))
        return picture_losses(made, to_pixels(batch["video"], device))


def draw(decoder: VideoDecoder, code: Tensor) -> Tensor:
    """Clips ``[B, 3, F, H, W]`` in about [-1, 1], float32, of codes ``[B, c, f, h, w]``."""
    silent = code.new_zeros(len(code), decoder.config.latent_channels - code.shape[1], *code.shape[2:])
    return decoder(torch.cat([code, silent], dim=1)).float()


class TaughtHalfTask(PretrainTask):
    """What training either half has in common. ``config`` is the one that the module was made from.

    ``held_out`` are batches of ``video`` and ``code`` to judge it by, one for each side: figures are the PSNR in dB.
    """

    half: ClassVar[str]

    def __init__(
        self, module: nn.Module, config: Mapping[str, Any], examples: Examples, held_out: Sequence[Batch] = ()
    ) -> None:
        super().__init__(module, examples)
        self.given_config, self.held_out = dict(config), tuple(held_out)

    def drawn(self, video: Tensor, code: Tensor) -> Tensor:
        """What is drawn of uint8 clips and their code: ``[B, 3, F, H, W]``."""
        raise NotImplementedError

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for clips in self.held_out:
            videos, codes, side = clips["video"], clips["code"].to(self.device), clips["video"].shape[-1]
            pairs = zip(videos.split(1), codes.split(1), strict=True)
            drawn = torch.cat([self.drawn(video, code).clamp(-1, 1).cpu() for video, code in pairs])
            true = to_pixels(videos, torch.device("cpu"))
            figures[f"psnr_{side}"] = sum(map(psnr, drawn, true)) / len(true)
            frames_sheet(folder / f"step_{step:06d}_{side}.png", true, drawn)
        return figures

    def tensors(self) -> dict[str, Tensor]:
        trained = self.module.get_submodule(self.half).state_dict()
        kept = {name: tensor for name, tensor in trained.items() if STATISTICS not in name}
        channels = int(self.given_config["vae"]["latent_channels"])
        statistics = {"mean-of-means": torch.zeros(channels), "std-of-means": torch.ones(channels)}
        return add_prefix(f"vae.{self.half}.", kept) | add_prefix(f"vae.{STATISTICS}", statistics)

    def config(self) -> dict[str, Any]:
        return {"vae": self.given_config["vae"]}


class TaughtEncoderTask(TaughtHalfTask):
    """Train a `TaughtEncoder`."""

    name, half = "video_encoder", "encoder"
    module: TaughtEncoder

    def drawn(self, video: Tensor, code: Tensor) -> Tensor:
        return self.module.draw(self.module.say(video))


class TaughtDecoderTask(TaughtHalfTask):
    """Train a `TaughtDecoder`."""

    name, half = "video_decoder", "decoder"
    module: TaughtDecoder

    def drawn(self, video: Tensor, code: Tensor) -> Tensor:
        return draw(self.module.decoder, code)
