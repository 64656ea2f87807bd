"""Linears with something learned beside them: LoRA, rsLoRA, DoRA and LoKr.

========  ====================================================  ========================================
lora      ``W + (alpha / rank) B A``                            B zero at first
rslora    ``W + (alpha / sqrt(rank)) B A``                      the same strength at every rank
dora      ``g * V / |V|`` by rows, ``V = W + (alpha/rank) B A``  g is ``|W|`` at first; ``|V|`` takes no gradient
lokr      ``W + (alpha / rank) kron(w1, w2a w2b)``              w2b zero at first; w2 whole where rank is large
========  ====================================================  ========================================

All learned tensors are float32. What is saved acts alike in loaders that know no alpha: the factor is multiplied into
one of the saved tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltx_core.errors import CheckpointError
from ltx_core.loader.adapters import LoraLayer
from ltx_trainer.memory import widen
from ltx_trainer.targets import factorize


@dataclass(frozen=True)
class LayerSettings:
    """Size and strength of the adapter of one linear; ``rate`` multiplies the learning rate of the run."""

    rank: int = 64
    alpha: float = 64
    kind: str = "lora"
    dropout: float = 0.0
    factor: int = 8  # of lokr: at most so many rows and columns in w1
    rate: float = 1.0

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.kind == "rslora" else self.rank)


class Adapter(nn.Module):
    """A frozen linear of any storage format and what is learned beside it."""

    def __init__(self, base: nn.Module, settings: LayerSettings) -> None:
        super().__init__()
        self.base = base
        self.settings = settings
        self.scale = settings.scale
        self.enabled = True  # off: the base alone
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.enabled:
            return y
        low = x if torch.is_autocast_enabled(x.device.type) else x.float()
        return self.adapt(y, self.dropout(low))

    def adapt(self, y: Tensor, x: Tensor) -> Tensor:
        """The result for the input ``x``, given the base's result ``y``."""
        raise NotImplementedError

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a file by the end of their names, from the learned ``values`` by theirs."""
        raise NotImplementedError

    def load(self, saved: LoraLayer) -> bool:
        """Take over what a file holds; False where it has another form."""
        raise NotImplementedError


class LoraLinear(Adapter):
    """LoRA and rsLoRA."""

    def __init__(self, base: nn.Module, settings: LayerSettings, generator: torch.Generator | None = None) -> None:
        super().__init__(base, settings)
        (inputs, outputs), device = linear_size(base), next(base.parameters()).device
        self.lora_A = nn.Linear(inputs, settings.rank, bias=False, device="meta")
        self.lora_B = nn.Linear(settings.rank, outputs, bias=False, device="meta")
        self.lora_A.weight = nn.Parameter(kaiming((settings.rank, inputs), generator).to(device))
        self.lora_B.weight = nn.Parameter(torch.zeros(outputs, settings.rank, device=device))

    def adapt(self, y: Tensor, x: Tensor) -> Tensor:
        return y + (self.lora_B(self.lora_A(x)) * self.scale).to(y.dtype)

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        a, b = values["lora_A.weight"].float(), values["lora_B.weight"].float()
        return {"lora_A.weight": a, "lora_B.weight": b * self.scale if self.scale != 1 else b}

    def load(self, saved: LoraLayer) -> bool:
        if saved.a is None or saved.b is None or saved.a.shape != self.lora_A.weight.shape:
            return False
        self.lora_A.weight.copy_(saved.a)
        self.lora_B.weight.copy_(saved.b.float() * (saved.scale / self.scale))
        return True


class DoraLinear(LoraLinear):
    """A low-rank change of the direction of every row, and a length of its own for it."""

    def __init__(self, base: nn.Module, settings: LayerSettings, generator: torch.Generator | None = None) -> None:
        super().__init__(base, settings, generator)
        self.lora_magnitude_vector = nn.Parameter(dense_weight(base).norm(dim=1))

    def adapt(self, y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
            changed = dense_weight(self.base) + self.scale * (self.lora_B.weight @ self.lora_A.weight)
            norm = changed.norm(dim=1)
        factor = (self.lora_magnitude_vector / norm).to(y.dtype)
        bias = getattr(self.base, "bias", None)
        turned = y if bias is None else y - bias.to(y.dtype)
        turned = factor * (turned + (self.lora_B(self.lora_A(x)) * self.scale).to(y.dtype))
        return turned if bias is None else turned + bias.to(y.dtype)

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**super().file_tensors(values), "lora_magnitude_vector": values["lora_magnitude_vector"].float()}

    def load(self, saved: LoraLayer) -> bool:
        if saved.magnitude is None or not super().load(saved):
            return False
        self.lora_magnitude_vector.copy_(saved.magnitude.flatten())
        return True


class LokrLinear(Adapter):
    """A Kronecker product: few values, and a change of full rank."""

    def __init__(self, base: nn.Module, settings: LayerSettings, generator: torch.Generator | None = None) -> None:
        super().__init__(base, settings)
        (inputs, outputs), device = linear_size(base), next(base.parameters()).device
        (o1, o2), (i1, i2) = (factorize(size, settings.factor) for size in (outputs, inputs))
        self.lokr_w1 = nn.Parameter(kaiming((o1, i1), generator).to(device))
        self.is_whole = settings.rank >= min(o2, i2)
        if self.is_whole:
            self.scale = 1.0  # a whole product has no rank, and loaders give it no factor
            self.lokr_w2 = nn.Parameter(torch.zeros(o2, i2, device=device))
        else:
            self.lokr_w2_a = nn.Parameter(kaiming((o2, settings.rank), generator).to(device))
            self.lokr_w2_b = nn.Parameter(torch.zeros(settings.rank, i2, device=device))

    def adapt(self, y: Tensor, x: Tensor) -> Tensor:
        w2 = self.lokr_w2 if self.is_whole else self.lokr_w2_a @ self.lokr_w2_b
        parts = x.unflatten(-1, (self.lokr_w1.shape[1], -1))  # [..., i1, i2]
        change = (self.lokr_w1.to(x.dtype) @ parts) @ w2.to(x.dtype).T  # [..., o1, o2]
        return y + (change.flatten(-2) * self.scale).to(y.dtype)

    def file_tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: value.float() for name, value in values.items()}
        return {**found, "lokr_w1": found["lokr_w1"] * self.scale}

    def load(self, saved: LoraLayer) -> bool:
        if saved.kron is None:
            return False
        w1, w2 = saved.kron
        if isinstance(w1, tuple) or w1.shape != self.lokr_w1.shape or isinstance(w2, tuple) == self.is_whole:
            return False
        self.lokr_w1.copy_(w1.float() * (saved.scale / self.scale))
        if not isinstance(w2, tuple):
            self.lokr_w2.copy_(w2)
            return True
        if w2[0].shape != self.lokr_w2_a.shape:
            return False
        self.lokr_w2_a.copy_(w2[0])
        self.lokr_w2_b.copy_(w2[1])
        return True


KINDS: dict[str, type[LoraLinear] | type[LokrLinear]] = {
    "lora": LoraLinear,
    "rslora": LoraLinear,
    "dora": DoraLinear,
    "lokr": LokrLinear,
}


def trained_tensors(layer: Adapter) -> dict[str, Tensor]:
    """Trained tensors of an adapted linear, by name in it."""
    return {name: value.detach() for name, value in layer.named_parameters() if not name.startswith("base.")}


def describe(layer: Adapter) -> str:
    """The form of an adapter, for messages."""
    return f"{layer.settings.kind} of rank {layer.settings.rank}"


def refuse(path: object, name: str, layer: Adapter, saved: LoraLayer) -> CheckpointError:
    """The error for a file whose tensors have another form than ``layer``."""
    rank = "of another form" if saved.a is None else f"of rank {saved.a.shape[0]}"
    return CheckpointError(f"{path}: {name} is {rank}, expected {describe(layer)}")


def kaiming(shape: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """Kaiming-uniform values with a = sqrt 5 for a matrix ``[out, in]``."""
    bound = math.sqrt(1 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def linear_size(linear: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear in any storage format."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    outputs, inputs = linear.get_parameter("weight").shape
    return inputs, outputs


def dense_weight(linear: nn.Module) -> Tensor:
    """The matrix of a linear in any storage format, float32 ``[out, in]``."""
    weight, scale = linear.get_parameter("weight"), getattr(linear, "weight_scale", None)
    return weight.detach().float() if scale is None else widen(weight.detach(), scale, torch.float32)
