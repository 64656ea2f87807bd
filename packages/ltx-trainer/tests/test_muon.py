"""Muon: steps are close to orthogonal, only layers' weights are matrices, it learns, and a run resumes bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltx_trainer.loop import LoopSettings, make_optimizer, train
from ltx_trainer.muon import Muon, matrix_weights, orthogonal


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 12)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = 50 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonal(matrix[None])[0]
    values = torch.linalg.svdvals(made)
    assert made.shape == matrix.shape and made.dtype == matrix.dtype
    assert values.min() > 0.5 and values.max() < 1.3
    nearest = left @ right
    assert torch.nn.functional.cosine_similarity(made.flatten(), nearest.flatten(), dim=0) > 0.95


def test_of_no_gradient_nothing_is_made() -> None:
    assert not orthogonal(torch.zeros(1, 4, 6)).any()


class Mixed(nn.Module):
    """One parameter of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.picture = nn.Conv2d(3, 5, 3)
        self.clip = nn.Conv3d(3, 5, 1, bias=False)
        self.wave = nn.ConvTranspose1d(4, 2, 4)
        self.words = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Parameter(torch.zeros(2, 4))


def test_weights_of_layers_are_matrices_and_tables_are_not() -> None:
    module = Mixed()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    matrices = {"linear.weight", "picture.weight", "clip.weight", "wave.weight"}
    assert {names[id(weight)] for weight in matrix_weights(module)} == matrices
    module.clip.requires_grad_(False)
    groups = {group["matrix"]: {names[id(p)] for p in group["params"]} for group in Muon(module, 0.1).param_groups}
    assert groups == {True: matrices - {"clip.weight"}, False: set(names.values()) - matrices}


def test_a_step_has_one_size_whatever_the_gradient() -> None:
    layer = nn.Linear(30, 20, bias=False)
    optimizer, sizes = Muon(layer, 0.1), []
    for scale in (1e-4, 1e3):
        before = layer.weight.detach().clone()
        layer.weight.grad = scale * torch.randn(20, 30, generator=torch.Generator().manual_seed(2))
        optimizer.step()
        sizes.append(float((layer.weight.detach() - before).square().mean().sqrt()))
    assert sizes == pytest.approx([0.1 * 0.2] * 2, rel=0.25)


class Regression:
    """Two layers that learn a linear map of noise, as a task of the loop."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = Fit()

    def batches(self, first_micro_step: int, rank: int, world_size: int) -> Iterator[Tensor]:
        position = first_micro_step
        while True:
            yield torch.randn(32, 6, generator=torch.Generator().manual_seed(position))
            position += 1

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        return {}

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        return []


class Fit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.SiLU(), nn.Linear(24, 6))
        self.register_buffer("target", torch.randn(6, 6, generator=torch.Generator().manual_seed(9)))

    def forward(self, x: Tensor, draws: Any) -> dict[str, Tensor]:
        return {"loss": (self.layers(x) - x @ self.target).square().mean()}


def settings(steps: int, **more: Any) -> LoopSettings:
    return LoopSettings(steps, learning_rate=0.02, optimizer_type="muon", checkpoint_interval=5, **more)


def test_it_learns(tmp_path: Path) -> None:
    losses = [
        report.losses["loss"] for report in train(Regression(), replace(settings(60), learning_rate=0.2), tmp_path)
    ]
    assert losses[-1] < 0.2 * losses[0]


def test_a_run_stopped_and_resumed_ends_bit_equal(tmp_path: Path) -> None:
    whole, broken = Regression(), Regression()
    losses = [report.losses for report in train(whole, settings(12), tmp_path / "whole")]
    for report in train(broken, settings(12), tmp_path / "broken"):
        if report.step == 7:
            break
    again = Regression()
    resumed = list(train(again, settings(12), tmp_path / "broken"))
    assert resumed[0].step > 5 and [report.losses for report in resumed] == losses[resumed[0].step - 1 :]
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name


def test_options_are_those_of_the_settings() -> None:
    made = make_optimizer(Mixed(), settings(1, optimizer_params={"momentum": 0.8, "other_rate": 0.5}))
    assert isinstance(made, Muon) and all((g["momentum"], g["other_rate"]) == (0.8, 0.5) for g in made.param_groups)
