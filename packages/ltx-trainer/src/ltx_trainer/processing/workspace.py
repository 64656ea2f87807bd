"""Processing of a data set: its options, the place of its records and a report."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ltx_core.fingerprint import fingerprint
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_media.source import Change
from ltx_trainer.model_files import VAE_OPTIONS, ModelFiles
from ltx_trainer.precomputed import read_values, record_path
from ltx_trainer.processing.controls import release_networks
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.options import ProcessingOptions


@dataclass
class Report:
    """Outcome of processing: records per directory, and every row left out with the reason."""

    written: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)  # there already
    stale: Counter[tuple[str, str]] = field(default_factory=Counter)  # by directory and what is no longer the same
    unknown: Counter[str] = field(default_factory=Counter)  # present, and not saying what they were made of
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # directory, row, reason
    changes: dict[str, list[str]] = field(default_factory=dict)  # by kind: what of which source
    notes: list[str] = field(default_factory=list)

    def note_changes(self, path: Path, changes: Sequence[Change]) -> None:
        """Keep what was changed of a source."""
        for change in changes:
            self.changes.setdefault(change.what, []).append(f"{path.name}: {change.how}")

    def add(self, other: Report) -> None:
        """Take in what became of other rows."""
        for name in ("written", "present", "stale", "unknown"):
            getattr(self, name).update(getattr(other, name))
        self.skipped += other.skipped
        self.notes += other.notes
        for what, found in other.changes.items():
            self.changes.setdefault(what, []).extend(found)

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        names = list(dict.fromkeys([*self.written, *self.present, *(name for name, _, _ in self.skipped)]))
        lost = Counter(name for name, _, _ in self.skipped)
        counts = [
            f"{name}: {self.written[name]} written, {self.present[name]} already there, {lost[name]} skipped"
            for name in names
        ]
        skipped = [f"skipped {name}/{row}: {reason}" for name, row, reason in self.skipped]
        changed = [
            f"{what} of {len(found)} sources changed, such as {found[0]}" for what, found in self.changes.items()
        ]
        stale = [f"{name}: {count} made again, another {what}" for (name, what), count in self.stale.items()]
        unknown = [
            f"{name}: {count} kept that do not say what they were made of; --overwrite makes them again"
            for name, count in self.unknown.items()
        ]
        return [*counts, *stale, *unknown, *skipped, *changed, *self.notes]


@dataclass(frozen=True)
class Workspace:
    """Folder of the records, and the networks that make them, each built when it is first needed."""

    output: Path
    models: ModelFiles
    options: ProcessingOptions
    factors: SpatioTemporalScaleFactors = field(default_factory=SpatioTemporalScaleFactors.default)
    report: Report = field(default_factory=Report)
    shows_progress: bool = True
    networks: dict[str, Any] = field(default_factory=dict)
    _prints: dict[str, str] = field(default_factory=dict)

    def network(self, name: str) -> Any:
        """A network on the device; audio networks in float32."""
        if name not in self.networks:
            options = self.options
            dtype = torch.float32 if name.startswith("audio") else options.dtype
            if name == "text_encoder":
                made: Any = self.models.text_encoder(dtype, options.device, options.text_encoder_in_8bit)
            else:
                made = self.models.build(name, dtype, options.device)
            self.networks[name] = made
        return self.networks[name]

    def print_of(self, network: str) -> str:
        """A fingerprint of the files that a network is read from."""
        if network not in self._prints:
            files = {self.models.model_path, self.models.text_encoder_path}
            if network != "text_encoder":
                files = {getattr(self.models, VAE_OPTIONS[network]) or self.models.model_path}
            self._prints[network] = " ".join(sorted(fingerprint(path) for path in files if path is not None))
        return self._prints[network]

    def release(self) -> None:
        """Let go of all networks, those of controls among them."""
        self.networks.clear()
        release_networks()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def record(self, directory: str, row: Row) -> Path | None:
        """The record of a row that is there already."""
        return record_path(self.output, directory, row.stem)

    def values(self, directory: str, row: Row) -> dict[str, Any] | None:
        """The numbers of a row's record, None where there is none."""
        path = self.record(directory, row)
        return None if path is None else read_values(path)

    def crop(self, row: Row) -> tuple[float, float]:
        """Place of the cut in the frames of a row, each way 0 to 1: the centre, or one that is the row's own."""
        if not self.options.random_crop:
            return 0.5, 0.5
        digest = hashlib.sha256(str(row.stem).encode()).digest()
        return digest[0] / 255, digest[1] / 255


def rank() -> int:
    """The number of this process where a launcher started several."""
    return int(os.environ.get("RANK", "0"))


def share(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of this process when a launcher started several: every n-th from its rank on."""
    return rows[rank() :: int(os.environ.get("WORLD_SIZE", "1"))]
