"""A forward with modulation for every token against modulation for the distinct noise levels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.common import COMPARISON, Options, Table, alternate, comparison
from benchmarks.models import LTX_19B, LTX_23, cpu_sizes, modalities_of, model_of
from ltx_core.model.transformer.layers import Modulation
from ltx_core.model.transformer.modality import TimestepGroups


def per_token_groups(timesteps: Tensor, tokens: int) -> TimestepGroups:
    per_token = timesteps.reshape(timesteps.shape[0], -1).expand(-1, tokens)
    return TimestepGroups(timesteps, per_token.flatten(), torch.empty(per_token.shape, dtype=torch.int64))


def per_token_row(self: Modulation, number: int, table: Tensor | None = None) -> Tensor:
    """Row of a table that exists for every token ``[B * T, k, width]``: a slice, with no gathering."""
    values = self.rows[:, number] if table is None else table[number].to(self.rows.dtype) + self.rows[:, number]
    return values[:, None] if self.index is None else values.view(*self.index.shape, -1)


@contextmanager
def modulation_by_token() -> Iterator[None]:
    """The straightforward way: AdaLN tables ``[B, T, k * width]`` for all tokens."""
    with mock.patch.object(Modulation, "row", per_token_row):
        yield


def run(options: Options) -> list[Table]:
    table = Table("Forward: modulation per token (plain) and per distinct noise level (improved)", COMPARISON)
    for style, version in (("2.3", LTX_23), ("19B", LTX_19B)):
        for size in cpu_sizes(options.quick, version):
            model = model_of(size, options.device)
            given = modalities_of(model, size, options.device)
            counts = {name: modality.latent.shape[1] for name, modality in given.items()}

            def plain(model: Any = model, given: Any = given, counts: Any = counts) -> Any:
                groups = {id(m.timesteps): per_token_groups(m.timesteps, counts[name]) for name, m in given.items()}
                with modulation_by_token(), mock.patch.object(TimestepGroups, "of", lambda t: groups[id(t)]):
                    return model(given["video"], given["audio"])

            def improved(model: Any = model, given: Any = given) -> Any:
                return model(given["video"], given["audio"])

            table.rows.append(
                comparison(f"{style}: {size.name}", alternate({"plain": plain, "improved": improved}, options))
            )
    return [table]
