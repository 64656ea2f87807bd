"""Muon: momentum whose matrices are made orthogonal, for networks that learn from nothing.

A step along the nearest orthogonal matrix moves every direction of a layer alike, where Adam follows the few that
dominate; small networks get to the same loss in a fraction of the steps. A convolution is a matrix ``[out, rest]``.
Biases, tables and norms have no directions to balance and take AdamW's step. Source: K. Jordan et al., "Muon" (2024);
the step's size follows J. Liu et al., "Muon is scalable for LLM training" (2025), so that one rate serves both kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from ltx_core.precision import fast

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values towards 1
ITERATIONS = 5
MATRIX_STEP = 0.2  # root mean square of a matrix's step, in learning rates


class Muon(torch.optim.Optimizer):
    """Muon for the weights of linear and convolution layers, AdamW without decay for all else.

    ``betas`` and ``eps`` are AdamW's; ``other_rate`` is its learning rate relative to Muon's.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        other_rate: float = 0.3,
        eps: float = 1e-8,
    ) -> None:
        matrices = [p for p in matrix_weights(module) if p.requires_grad]
        known = {id(p) for p in matrices}
        others = [p for p in module.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict[str, Any]] = [{"params": matrices, "matrix": True}, {"params": others, "matrix": False}]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "other_rate": other_rate, "eps": eps}
        super().__init__([group for group in groups if group["params"]], defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on the gradients at hand; parameters without one are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["matrix"]:
                self._matrix_steps(learning, group)
            else:
                for parameter in learning:
                    _adam_step(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _matrix_steps(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Matrices of one shape are made orthogonal together."""
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            ahead = _looking_ahead(parameter, self.state[parameter], group["momentum"])
            alike.setdefault(tuple(ahead.shape), []).append((parameter, ahead))
        for shape, pairs in alike.items():
            updates = orthogonal(torch.stack([ahead for _, ahead in pairs]))
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.sub_(update.view_as(parameter), alpha=group["lr"] * MATRIX_STEP * max(shape) ** 0.5)


def matrix_weights(module: nn.Module) -> list[Tensor]:
    """The weights of all linear and convolution layers."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d)
    return [part.weight for part in module.modules() if isinstance(part, layers)]


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrices ``[N, m, n]``, by Newton-Schulz iterations; bfloat16 is enough for them."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if fast(matrices.device.type) == "bfloat16" else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _looking_ahead(parameter: Tensor, state: dict[str, Any], momentum: float) -> Tensor:
    """The gradient with its momentum, one step ahead (Nesterov), as a matrix ``[out, rest]``."""
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    held: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
    return torch.lerp(gradient, held, momentum).flatten(1)


def _adam_step(parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    first, second = group["betas"]
    state["step"] += 1
    taken = float(state["step"])
    mean = state["exp_avg"].lerp_(gradient, 1 - first)
    square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - second)
    spread = (square / (1 - second**taken)).sqrt_().add_(group["eps"])
    parameter.addcdiv_(mean, spread, value=-group["lr"] * group["other_rate"] / (1 - first**taken))
