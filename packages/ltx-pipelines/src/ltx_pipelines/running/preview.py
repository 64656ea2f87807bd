"""Pictures of a latent without its decoder: a linear map from channels to pixels, fitted by least squares.

::

    latent [1, C, F, h, w] -> cells [F*h*w, C + 1] @ map [C + 1, 3*4*4] -> pixels [F, 4h, 4w, 3]

A cell becomes 4 x 4 pixels of the first frame it stands for. A model may bring its map along, as
``NAME-preview.safetensors`` beside its file. For others it is fitted to the first clips that the decoder makes, and
kept in the user's cache with what it was solved from. Both say which decoder they are for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.errors import CheckpointError
from ltx_core.loader.safetensors_file import SafetensorsFile, save_tensors
from ltx_pipelines.utils.model_ledger import ModelLedger

SIDE = 4  # pixels of a cell, along both sides
ENOUGH = 15_000  # cells after which nothing is added
RIDGE = 0.01  # pulls the map of few cells towards their mean colour, in variances of a channel
KEY = "decoder"


@dataclass(frozen=True)
class PreviewMap:
    """``weights`` is ``[C + 1, 3*4*4]``, float32."""

    weights: Tensor

    def frames(self, latent: Tensor, most: int) -> Tensor:
        """Up to ``most`` frames of a latent, spread over its length: uint8 ``[f, 4h, 4w, 3]`` on the CPU."""
        count, (height, width) = latent.shape[2], latent.shape[3:]
        chosen = torch.linspace(0, count - 1, min(most, count)).round().long()
        pixels = cells_of(latent[:, :, chosen.to(latent.device)]) @ self.weights.to(latent.device)
        tiles = pixels.view(-1, height, width, SIDE, SIDE, 3).transpose(2, 3)
        frames: Tensor = tiles.reshape(-1, height * SIDE, width * SIDE, 3).clamp(0, 1).mul(255).round()
        return frames.to("cpu", torch.uint8)


@dataclass(frozen=True)
class Sums:
    """Sums that a map is solved from, over cells ``x``, whose last entry is 1, and their pixels ``y``; float64."""

    gram: Tensor  # x^T x, [C + 1, C + 1]
    cross: Tensor  # x^T y, [C + 1, 3*4*4]

    @classmethod
    def empty(cls, channels: int) -> Sums:
        """Those of no cell."""
        shapes = ((channels + 1, channels + 1), (channels + 1, 3 * SIDE**2))
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    @property
    def cells(self) -> int:
        """Number of cells seen."""
        return int(self.gram[-1, -1])

    def seeing(self, latent: Tensor, frames: Tensor) -> Sums:
        """With the cells of a latent ``[1, C, F, h, w]`` that stands for ``frames [F, 4h, 4w, 3]`` in [0, 1]."""
        x = cells_of(latent).double().cpu()
        y = frames.unflatten(1, (-1, SIDE)).unflatten(3, (-1, SIDE)).transpose(2, 3).reshape(len(x), -1).double().cpu()
        return Sums(self.gram + x.T @ x, self.cross + x.T @ y)

    def solve(self) -> PreviewMap:
        """The map of least squares."""
        ridge = torch.full((len(self.gram),), RIDGE * self.cells, dtype=torch.float64)
        ridge[-1] = 0
        return PreviewMap(torch.linalg.solve(self.gram + ridge.diag(), self.cross).float())


def cells_of(latent: Tensor) -> Tensor:
    """``[1, C, F, h, w]`` as cells by frame, row and column, float32 ``[F*h*w, C + 1]`` with a 1 at the end."""
    return F.pad(latent[0].float().flatten(1).T, (0, 1), value=1.0)


def find_map(ledger: ModelLedger) -> PreviewMap | None:
    """The map of a model's decoder; None where it brings none along and no clip was decoded yet."""
    file = of_decoder(beside(ledger), ledger) or of_decoder(cache_path(ledger), ledger)
    return None if file is None else PreviewMap(file.read("map").float())


def of_decoder(path: Path, ledger: ModelLedger) -> SafetensorsFile | None:
    """The file of a map, if there is one and it is for the model's decoder."""
    with suppress(CheckpointError):
        if path.is_file() and (file := SafetensorsFile(path)).metadata.get(KEY) == ledger.decoder_digest:
            return file
    return None


def beside(ledger: ModelLedger) -> Path:
    """Path of the map that a model brings along."""
    checkpoint = Path(ledger.files.checkpoint)
    return checkpoint.with_name(f"{checkpoint.stem}-preview.safetensors")


def cache_path(ledger: ModelLedger) -> Path:
    """Path of a map that was fitted here."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "ltx" / "previews" / f"{ledger.decoder_digest}.safetensors"


def fitting(latent: Tensor, chunks: Iterator[Tensor], ledger: ModelLedger) -> Iterator[Tensor]:
    """The chunks of frames ``[f, H, W, 3]`` a latent decodes to, as they are; on their way the map is fitted."""
    kept = of_decoder(cache_path(ledger), ledger)
    sums = Sums.empty(latent.shape[1]) if kept is None else Sums(kept.read("gram"), kept.read("cross"))
    if sums.cells >= ENOUGH or of_decoder(beside(ledger), ledger) is not None:
        yield from chunks
        return
    step, size, at = ledger.scale_factors.time, [SIDE * side for side in latent.shape[3:]], 0
    seen: list[Tensor] = []
    for chunk in chunks:
        first = chunk[-at % step :: step].permute(0, 3, 1, 2).float()
        if len(first):
            seen.append(F.interpolate(first, size, mode="area").permute(0, 2, 3, 1))
        at += len(chunk)
        yield chunk
    frames = torch.cat(seen)[: latent.shape[2]]
    if len(frames) == latent.shape[2]:
        sums = sums.seeing(latent, frames)
        tensors = {"map": sums.solve().weights, "gram": sums.gram, "cross": sums.cross}
        with suppress(CheckpointError, OSError):  # a cache that cannot be written costs previews, not the clip
            save_tensors(cache_path(ledger), tensors, {KEY: ledger.decoder_digest})
