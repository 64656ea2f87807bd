"""The audio VAE from nothing: reconstruct log-mel pictures through a latent that is held near a normal distribution.

The loss is the absolute error of the log-mel plus a light Kullback-Leibler term; the statistics of every token channel
are measured on export.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.model.audio_vae.audio_vae import AudioDecoder, AudioEncoder
from ltx_core.model.audio_vae.config import AudioVaeConfig
from ltx_core.model.audio_vae.mel import log_mel
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.pictures import spectrogram_sheet
from ltx_trainer.pretrain.task import (
    STATISTICS,
    PretrainTask,
    Spread,
    add_prefix,
    centre_input,
    centre_output,
)

FIRST_LOG_VARIANCE = -4.0


class AudioVae(nn.Module):
    """Both halves. Training works on raw latents: the statistics stay at mean 0 and spread 1 until export."""

    def __init__(self, config: AudioVaeConfig, kl_weight: float) -> None:
        super().__init__()
        self.encoder, self.decoder, self.kl_weight = AudioEncoder(config), AudioDecoder(config), kl_weight
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """``batch["waveform"]`` float32 ``[B, 2, N]`` to losses; the mel frames of N must number ``4k + 1``."""
        mel = self.mel(batch["waveform"])
        mean, logvar = (part.float() for part in self.encoder.moments(mel))
        logvar = logvar.clamp(-30.0, 20.0)
        latent = mean + (0.5 * logvar).exp() * draws.randn(mean.shape)
        absolute = (self.decoder(latent).float() - mel).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return {"loss": absolute + self.kl_weight * kl, "absolute": absolute, "kl": kl}

    def mel(self, waveform: Tensor) -> Tensor:
        """Sound to its log-mel picture ``[B, 2, T, bins]`` on the weights' device."""
        waveform = waveform.to(self.encoder.conv_in.conv.weight.device, torch.float32)
        return log_mel(waveform, self.encoder.config.mel)

    def reconstruct(self, mel: Tensor) -> Tensor:
        """A log-mel picture through the mean latent and back."""
        return self.decoder(self.encoder.moments(mel)[0])


@torch.no_grad()
def start_certain(conv: nn.Module) -> None:
    """Let a fresh encoder give latents with little noise: under much, the decoder learns to do without them."""
    bias = conv.get_parameter("bias")
    bias[bias.shape[0] // 2 :].fill_(FIRST_LOG_VARIANCE)


class AudioVaeTask(PretrainTask):
    """Train an `AudioVae`; ``held_out`` is sound ``[B, 2, N]`` to judge it by."""

    name = "audio_vae"
    module: AudioVae

    def __init__(
        self,
        config: Mapping[str, Any],
        examples: Examples,
        held_out: Tensor | None = None,
        kl_weight: float = 1e-3,
        statistics_batches: int = 16,
    ) -> None:
        super().__init__(AudioVae(AudioVaeConfig.from_metadata(config), kl_weight), examples)
        mel = self.module.mel(examples.batch(0)["waveform"])
        centre_input(self.module.encoder.conv_in.conv, mel)
        start_certain(self.module.encoder.conv_out.conv)
        centre_output(self.module.decoder.conv_out.conv, mel)
        self.given_config, self.held_out, self.statistics_batches = dict(config), held_out, statistics_batches

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        if self.held_out is None:
            return {}
        before = self.module.mel(self.held_out)
        after = self.module.reconstruct(before)
        spectrogram_sheet(folder / f"step_{step:06d}.png", before, after)
        return {"held_out_mel_error": float((after - before).abs().mean())}

    def tensors(self) -> dict[str, Tensor]:
        encoder, decoder = self.module.encoder.state_dict(), self.module.decoder.state_dict()
        both = add_prefix("audio_vae.encoder.", encoder) | add_prefix("audio_vae.decoder.", decoder)
        tensors = {name: tensor for name, tensor in both.items() if STATISTICS not in name}
        return tensors | add_prefix(f"audio_vae.{STATISTICS}", self.statistics().tensors())

    def config(self) -> dict[str, Any]:
        return {"audio_vae": self.given_config["audio_vae"]}

    def statistics(self) -> Spread:
        """Mean and spread of every raw token channel ``c*F + f`` over training clips."""
        spread = Spread()
        for position in range(self.statistics_batches):
            mel = self.module.mel(self.examples.batch(position)["waveform"])
            mean, _ = self.module.encoder.moments(mel)  # [B, C, L, F]
            spread.add(mean.permute(1, 3, 0, 2).flatten(2).flatten(0, 1))  # [C*F, B*L]
        return spread
