"""The x2 latent upsampler from nothing: the latent of a small clip to the latent of the same clip at full size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.loader.safetensors_file import save_checkpoint
from ltx_core.model.upsampler.config import LatentUpsamplerConfig
from ltx_core.model.upsampler.model import LatentUpsampler, upsample_latent
from ltx_trainer.draws import Draws
from ltx_trainer.pretrain.data import Examples
from ltx_trainer.pretrain.task import MODEL_VERSION, PretrainTask, holding, read_first, say_first


class UpsamplerTrainer(nn.Module):
    """The network works on raw latents, the loss is taken between normalised ones."""

    mean: Tensor  # [C], statistics of the video VAE
    std: Tensor

    def __init__(
        self, config: LatentUpsamplerConfig, statistics: tuple[Tensor, Tensor], code_channels: int = 0
    ) -> None:
        super().__init__()
        self.upsampler = LatentUpsampler(config)
        if code_channels:
            read_first(self.upsampler.initial_conv, code_channels)
            say_first(self.upsampler.final_conv, code_channels)
        for name, value in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, value, persistent=False)

    def forward(self, batch: Mapping[str, Tensor], draws: Draws | None) -> dict[str, Tensor]:
        """``batch["small"]`` ``[B, C, f, h, w]`` and ``batch["large"]`` of twice the sides, normalised, to losses."""
        small, large = (batch[name].to(self.mean.device).float() for name in ("small", "large"))
        made = upsample_latent(small, self.upsampler, self.mean, self.std)
        return {"loss": F.mse_loss(made.float(), large)}


class UpsamplerTask(PretrainTask):
    """Train a latent upsampler; ``held_out`` is one batch to judge it by."""

    name = "upsampler"
    module: UpsamplerTrainer

    def __init__(
        self,
        config: Mapping[str, Any],
        statistics: tuple[Tensor, Tensor],
        examples: Examples,
        held_out: Mapping[str, Tensor] | None = None,
        code_channels: int = 0,
    ) -> None:
        module = UpsamplerTrainer(LatentUpsamplerConfig.from_metadata(config), statistics, code_channels)
        super().__init__(module, examples)
        self.given_config, self.held_out = dict(config), held_out

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        if self.held_out is None:
            return {}
        nearest = F.interpolate(self.held_out["small"].float(), scale_factor=(1, 2, 2))
        baseline = float(F.mse_loss(nearest, self.held_out["large"].float()))
        loss = float(self.module(self.held_out, None)["loss"])
        return {"held_out_loss": loss, "nearest_neighbour_loss": baseline}

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        """A file of its own, as upscalers are published."""
        path = folder / f"{self.name}_step_{step:05d}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        with holding(self.module, weights):
            tensors = self.module.upsampler.state_dict()
            save_checkpoint(path, tensors, {"config": self.given_config, "model_version": MODEL_VERSION})
        return [path]
