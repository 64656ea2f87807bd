"""The common part of all tasks that start from nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ltx_core.loader.safetensors_file import save_checkpoint
from ltx_trainer.pretrain.data import Examples

MODEL_VERSION = "2.3.0"
STATISTICS = "per_channel_statistics."


class PretrainTask:
    """A network, where its examples come from, and the file it is exported to."""

    name: ClassVar[str]
    module: nn.Module

    def __init__(self, module: nn.Module, examples: Examples) -> None:
        self.module, self.examples = module, examples

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def batches(self, first_micro_step: int, rank: int, world_size: int) -> Iterator[dict[str, Tensor]]:
        """Endless batches; a function of the position alone."""
        return self.examples.batches(first_micro_step, rank)

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        """Figures and pictures; none unless a task says so."""
        return {}

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        """Write the component's file: ``tensors()`` of the module with ``weights``, and ``metadata()``."""
        path = folder / f"{self.name}_step_{step:05d}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        with holding(self.module, weights), torch.no_grad():
            save_checkpoint(path, self.tensors(), {"config": self.config(), "model_version": MODEL_VERSION})
        return [path]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names of the published files."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The sections of the checkpoint's config that describe this component."""
        raise NotImplementedError


class Spread:
    """Mean and standard deviation of many channels, gathered batch by batch in float64."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Values ``[C, n]`` of C channels."""
        values = values.detach().double().cpu()
        self.total = self.total + values.sum(dim=1)
        self.square = self.square + values.square().sum(dim=1)
        self.count += values.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The two tensors of a VAE's ``per_channel_statistics``, float32 ``[C]``."""
        mean = torch.as_tensor(self.total) / self.count
        variance = torch.as_tensor(self.square) / self.count - mean.square()
        return {"mean-of-means": mean.float(), "std-of-means": variance.clamp(min=1e-8).sqrt().float()}


@torch.no_grad()
def centre_input(conv: nn.Module, like: Tensor) -> None:
    """Let a fresh convolution read values spread like ``like`` as if they had mean 0 and spread 1."""
    weight = conv.get_parameter("weight").div_(like.std())
    conv.get_parameter("bias").sub_(weight.flatten(1).sum(dim=1) * like.mean())


@torch.no_grad()
def centre_output(conv: nn.Module, like: Tensor) -> None:
    """Let a fresh convolution give values spread about like ``like`` where it would give them about 0."""
    conv.get_parameter("weight").mul_(like.std())
    conv.get_parameter("bias").mul_(like.std()).add_(like.mean())


@torch.no_grad()
def read_first(layer: nn.Module, channels: int) -> None:
    """Let a fresh layer look at its first input channels alone; it stays so while the others are 0 in training."""
    layer.get_parameter("weight")[:, channels:] = 0.0


@torch.no_grad()
def say_first(layer: nn.Module, channels: int) -> None:
    """Let a fresh layer give 0 in all but its first output channels; it stays so while no loss asks for more."""
    layer.get_parameter("weight")[channels:] = 0.0
    layer.get_parameter("bias")[channels:] = 0.0


@contextmanager
def holding(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``module`` hold other ``weights`` (by parameter name) for a while."""
    parameters = {name: p for name, p in module.named_parameters() if name in weights}
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
        yield
    finally:
        module.train(training)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
