"""Samples of a model, with adapters if there are any, made as validation makes them: one stage, full guidance."""

from __future__ import annotations

from pathlib import Path

import torch

from ltx_core.errors import ConfigError
from ltx_core.loader.lora import Lora
from ltx_core.model.transformer.model import LTXModel
from ltx_core.precision import resolve
from ltx_trainer.model_files import ModelFiles, open_trainable
from ltx_trainer.validation_config import ValidationConfig
from ltx_trainer.validation_media import Studio
from ltx_trainer.validation_sampler import ValidationSampler, check_samples


@torch.no_grad()
def make_samples(
    files: ModelFiles, config: ValidationConfig, stem: Path, loras: tuple[tuple[Path, float], ...] = ()
) -> list[Path]:
    """Make ``config.samples`` as ``<stem>_<i>.mp4`` (png, wav) with a sheet beside each; returns the files.

    ``loras`` are (file, strength). Raises `ConfigError` for samples the model cannot make.
    """
    if not config.samples:
        raise ConfigError("there is no sample to make, expected at least one prompt")
    checkpoint, factors = open_trainable(files), files.scale_factors()
    check_samples(config, factors, tuple(checkpoint.network_config("transformer").streams))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve("auto", device).dtype
    studio = Studio(files, device, dtype)
    samples = studio.prepare(config)
    adapters = [Lora.open(path, strength) for path, strength in loras]
    transformer = checkpoint.build("transformer", dtype, device, adapters)
    assert isinstance(transformer, LTXModel)
    sampler = ValidationSampler(config, transformer, factors, dtype)
    made = [sampler.latents(sample) for sample in samples]
    return studio.write(made, samples, stem)[0]
