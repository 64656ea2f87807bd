"""The vocoder from nothing: log-mel pictures back to sound, judged by its spectra at several resolutions.

One network makes either side from that side's mel; the file has it twice, side by side. A network of both that may look
across learns from sound that is mostly in the middle: it adds the sides at its entrance, and nothing moves any more.
Left, right, their sum and their difference are compared, so that the two sides keep their phase to each other, and each
is made softer by chance. The mel is roughened a little, because what a vocoder is given comes out of a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.config import STEREO, AudioVaeConfig, VocoderConfig
from ltx_core.model.audio_vae.mel import log_mel
from ltx_core.model.audio_vae.vocoder import Generator
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.pictures import spectrogram_sheet
from ltx_trainer.pretrain.task import PretrainTask, add_prefix, centre_input

RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128), (128, 32))  # samples per window and hop
MAGNITUDE_FLOOR = 1e-3
SIDE_DECIBELS = 20.0  # a side is made softer by up to


class VocoderTrainer(nn.Module):
    """Half a vocoder of one generator whose output rate is the mel's rate, and its losses.

    Raises `ConfigError` for a width that does not part into two sides in every layer.
    """

    def __init__(self, config: Mapping[str, Any], mel_noise: float) -> None:
        super().__init__()
        whole = VocoderConfig.from_metadata(config).generator
        narrowest = STEREO * 2 ** len(whole.upsample_rates)  # the width halves at each of them
        if whole.upsample_initial_channel % narrowest:
            raise ConfigError(
                f"upsample_initial_channel is {whole.upsample_initial_channel}, expected a multiple of {narrowest}: "
                "each side has half of every layer"
            )
        self.side = Generator(replace(whole, upsample_initial_channel=whole.upsample_initial_channel // STEREO), 1)
        self.mel_config = AudioVaeConfig.from_metadata(config).mel
        self.mel_noise = mel_noise

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """``batch["waveform"]`` float32 ``[B, 2, N]``, N a multiple of the hop, to losses."""
        waveform = batch["waveform"].to(self.side.conv_pre.weight.device)
        target = waveform * 10 ** (-SIDE_DECIBELS / 20 * draws.rand((*waveform.shape[:2], 1)).to(waveform))
        mel = self.mel(target)
        made = self.waveform(mel + self.mel_noise * draws.randn(mel.shape))
        logarithmic, relative = spectral_losses(made.float(), target)
        return {"loss": logarithmic + relative, "log_magnitude": logarithmic, "relative": relative}

    def waveform(self, mel: Tensor) -> Tensor:
        """``[B, 2, T, bins] -> [B, 2, T * hop]``."""
        return self.side(mel.flatten(0, 1).unsqueeze(1)).view(*mel.shape[:2], -1)

    def mel(self, waveform: Tensor) -> Tensor:
        """``[B, 2, N] -> [B, 2, N / hop, bins]``: the frame centred behind the last sample is left out."""
        mel = log_mel(waveform.float(), self.mel_config)
        return mel[:, :, : waveform.shape[-1] // self.mel_config.hop_length]


class VocoderTask(PretrainTask):
    """Train a vocoder; ``held_out`` is sound ``[B, 2, N]`` to judge it by."""

    name = "vocoder"
    module: VocoderTrainer

    def __init__(
        self,
        config: Mapping[str, Any],
        examples: Examples,
        held_out: Tensor | None = None,
        mel_noise: float = 0.1,
    ) -> None:
        super().__init__(VocoderTrainer(config, mel_noise), examples)
        centre_input(self.module.side.conv_pre, self.module.mel(examples.batch(0)["waveform"]))
        self.given_config, self.held_out = dict(config), held_out

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        if self.held_out is None:
            return {}
        before = self.module.mel(self.held_out.to(self.device))
        after = self.module.mel(self.module.waveform(before))
        spectrogram_sheet(folder / f"step_{step:06d}.png", before, after)
        return {"held_out_mel_error": float((after - before).abs().mean())}

    def tensors(self) -> dict[str, Tensor]:
        return add_prefix("vocoder.", side_by_side(self.module.side.state_dict()))

    def config(self) -> dict[str, Any]:
        return {"vocoder": self.given_config["vocoder"]}


def side_by_side(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights ``[o, i, k]`` and ``[o]`` of a network of one side, to ``[2o, 2i, k]`` and ``[2o]`` of one of both in
    which no side sees the other.
    """
    twice = {}
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            twice[name] = tensor.repeat(STEREO)
        else:
            nothing = torch.zeros_like(tensor)
            left, right = (tensor, nothing), (nothing, tensor)
            twice[name] = torch.cat([torch.cat(row, dim=1) for row in (left, right)])
    return twice


def spectral_losses(made: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error of log magnitudes, and error over norm, of ``[B, 2, N]`` averaged over the resolutions.

    Every example has a norm of its own: beside a hum, a tick would not count.
    """
    logarithmic = relative = torch.zeros((), device=made.device)
    for window, hop in RESOLUTIONS:
        a, b = (magnitudes(views(signal), window, hop) for signal in (made, target))
        floor = MAGNITUDE_FLOOR * window**0.5
        logarithmic = logarithmic + ((a + floor).log() - (b + floor).log()).abs().mean()
        error, norm = (x.unflatten(0, (len(made), -1)).flatten(1).norm(dim=1) for x in (a - b, b))
        relative = relative + (error / norm.clamp(min=1.0)).mean()
    return logarithmic / len(RESOLUTIONS), relative / len(RESOLUTIONS)


def views(waveform: Tensor) -> Tensor:
    """``[B, 2, N] -> [B*4, N]``: left, right, half their sum and half their difference."""
    left, right = waveform.unbind(dim=1)
    return torch.stack((left, right, (left + right) / 2, (left - right) / 2), dim=1).flatten(0, 1)


def magnitudes(signal: Tensor, window: int, hop: int) -> Tensor:
    """Magnitude spectra ``[B, N] -> [B, window/2 + 1, frames]`` with a finite gradient in silence."""
    spectrum = torch.stft(signal, window, hop, window=hann(window, signal.device), return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()


@lru_cache(maxsize=16)
def hann(window: int, device: torch.device) -> Tensor:
    return torch.hann_window(window, device=device)
