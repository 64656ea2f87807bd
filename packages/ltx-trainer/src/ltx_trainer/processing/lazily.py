"""Clips that are encoded when they are first drawn, so that a run begins at once.

What their records will look like is told from the headers of their files: the order of batches is that of a prepared
data set. A clip whose header cannot be read, or that is not known from its header, is encoded ahead like all others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from ltx_core.errors import ConfigError, LtxError
from ltx_core.types import AUDIO_SAMPLE_RATE, Audio
from ltx_media.audio import probe_sound
from ltx_media.images import is_image
from ltx_media.source import changes_of, sampling_rate, sound_changes
from ltx_media.video import STILL_FPS, VideoInfo, probe_video
from ltx_trainer.background import in_background
from ltx_trainer.datasets import PrecomputedDataset, UnreadableClipError
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import ROLES_OF, SUFFIX, Signature, read_inputs, signature, signature_of
from ltx_trainer.processing.audio_stages import SHORTEST, encode_sounds
from ltx_trainer.processing.buckets import Bucket
from ltx_trainer.processing.dataset import process_sounds, process_videos
from ltx_trainer.processing.inputs import changed_inputs, inputs_of
from ltx_trainer.processing.masks import kept_frames
from ltx_trainer.processing.metadata import Row
from ltx_trainer.processing.video_stages import bucket_of, frames_by_header, keyframes_of, wanted_clip
from ltx_trainer.processing.workspace import Report, Workspace

logger = logging.getLogger(__name__)

#: Directories whose records are known from headers. Captions are encoded ahead, sound alone is as long as it decodes.
FORESEEN = ("latents", "audio_latents", "reference_latents", "keyframe_latents", "video_masks", "loss_masks")
#: Held by who encodes: the clips of all sets share their networks, and those share the device with training.
ENCODER_LOCK = Lock()


@dataclass(frozen=True)
class Expected:
    """A clip that waits: its size and rate, and the signatures of its records by directory."""

    row: Row
    bucket: Bucket
    fps: float
    signatures: Mapping[str, Signature]
    work: Workspace

    def make(self) -> None:
        """Encode the clip.

        Raises `UnreadableClipError` where it cannot be read, or is not what its header says, and `ConfigError` where
        memory does not suffice.
        """
        work = replace(self.work, report=Report())
        try:
            with torch.autocast(torch.device(work.options.device).type, enabled=False):
                process_videos([self.row], work)
                process_sounds([self.row], work, "audio_latents" in self.signatures)
        except ConfigError as error:
            raise ConfigError(f"{error}; data.encode: ahead encodes before the transformer is there") from error
        for directory, expected in self.signatures.items():
            reasons = (why for place, _, why in work.report.skipped if place == directory)
            path = work.record(directory, self.row)
            if path is None or signature(path) != expected:
                for name in self.signatures:
                    (work.output / name / f"{self.row.stem}{SUFFIX}").unlink(missing_ok=True)
                raise UnreadableClipError(next(reasons, f"{directory} are not of the size that its header says"))


@dataclass(frozen=True)
class Headers:
    """Records of a set's clips, told from the headers of their files."""

    work: Workspace
    directories: tuple[str, ...]  # that a run reads
    silences: dict[tuple[int, int], Signature] = field(default_factory=dict)  # by samples and rate

    def expect(self, row: Row) -> Expected | None:
        """A row that can wait; None for one that is encoded already, or must be now."""
        wanted = [name for name in self.directories if set(ROLES_OF.get(name, ())) & row.media.keys()]
        if "video" not in row.media or not set(wanted) <= set(FORESEEN) or self._is_made(row, wanted):
            return None
        with suppress(LtxError):  # what is wrong is said where it is encoded
            return replace(self, work=replace(self.work, report=Report()))._expect(row, wanted)
        return None

    def _is_made(self, row: Row, directories: Sequence[str]) -> bool:
        for name in directories:
            record = self.work.record(name, row)
            if record is None or changed_inputs(read_inputs(record), inputs_of(name, row, self.work)):
                return False
        return True

    def _expect(self, row: Row, directories: Sequence[str]) -> Expected:
        work = self.work
        info = probe_video(row.media["video"])
        rate = sampling_rate(info, work.options.fps)
        bucket = bucket_of(info, frames_by_header(row, info, rate), work.options.buckets)
        fps = float(STILL_FPS) if bucket.frames == 1 else rate or float(info.fps)
        signatures = {}
        for name in directories:
            if name == "latents":
                signatures[name] = self._latents(bucket.frames, bucket.height, bucket.width, fps)
            elif name == "audio_latents":
                signatures[name] = self._sound(row, bucket.frames / fps if bucket.frames > 1 else 0.0)
            elif name == "reference_latents":
                signatures[name] = self._reference(row, bucket, fps)
            elif name == "keyframe_latents":
                signatures[name] = self._keyframes(bucket)
            else:
                probe_video(next(row.media[role] for role in ROLES_OF[name] if role in row.media))
                signatures[name] = signature_of({"mask": self._grid(bucket.frames, bucket.height, bucket.width)})
        self._note_changes(row, info, bucket, rate)
        return Expected(row, bucket, fps, signatures, work)

    def _note_changes(self, row: Row, info: VideoInfo, size: Bucket, rate: float | None) -> None:
        start, crop = info.start + row.start if row.start else 0.0, self.work.crop(row)
        wanted = wanted_clip(size.frames, (size.height, size.width), rate, self.work, crop, start)
        self.work.report.note_changes(info.path, changes_of(info, wanted))

    def _grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        factors = self.work.factors
        return factors.latent_frames(frames), height // factors.height, width // factors.width

    def _latents(self, frames: int, height: int, width: int, fps: float) -> Signature:
        return signature_of({"latents": (channels_of(self.work.models), *self._grid(frames, height, width))}, fps)

    def _reference(self, row: Row, bucket: Bucket, fps: float) -> Signature:
        options, path = self.work.options, row.media["reference_video"]
        height, width = (side // options.reference_downscale_factor for side in (bucket.height, bucket.width))
        info, still = probe_video(path), is_image(path)
        self._note_changes(row, info, Bucket(1 if still else bucket.frames, height, width), None if still else fps)
        if still:
            return self._latents(1, height, width, float(STILL_FPS))
        factor = options.reference_temporal_scale_factor
        return self._latents(len(kept_frames(bucket.frames, factor)), height, width, fps / factor)

    def _keyframes(self, bucket: Bucket) -> Signature:
        count = len(keyframes_of(bucket.frames, self.work.options.keyframes))
        _, *sides = self._grid(bucket.frames, bucket.height, bucket.width)
        return signature_of({"latents": (channels_of(self.work.models), count, *sides), "frames": (count,)})

    def _sound(self, row: Row, duration: float) -> Signature:
        """That of silence as long."""
        path = row.media.get("audio", row.media["video"])
        sound = None if not duration or ("audio" not in row.media and is_image(path)) else probe_sound(path)
        rate = AUDIO_SAMPLE_RATE if sound is None else sound.rate
        silence = round((duration or SHORTEST) * rate), rate
        with ENCODER_LOCK, torch.no_grad():
            if silence not in self.silences:
                (record,) = encode_sounds([Audio(torch.zeros(2, silence[0]), rate)], self.work)
                latents = record["latents"]
                assert isinstance(latents, torch.Tensor)
                self.silences[silence] = signature_of({"latents": tuple(latents.shape)})
        if sound is not None:
            self.work.report.note_changes(row.target, sound_changes(sound.channels))
        return self.silences[silence]


def waiting_clips(rows: Sequence[Row], work: Workspace, directories: Iterable[str]) -> dict[Path, Expected]:
    """The clips that can be encoded when they are drawn, by the names of their records."""
    headers, waiting = Headers(work, tuple(name for name in directories if name != "conditions")), {}
    for expected in in_background(headers.expect, rows, work.options.workers):
        if expected is not None:
            waiting[expected.row.stem] = expected
            work.report.add(expected.work.report)
    return waiting


@lru_cache(maxsize=4)
def channels_of(models: ModelFiles) -> int:
    """Channels of a model's video latents."""
    return int(models.checkpoint_of("video_encoder").network_config("video_encoder").latent_channels)


class LazyDataset(PrecomputedDataset):
    """A data set some of whose records are made, and kept, when they are first read."""

    def __init__(self, root: str | Path, sources: Mapping[str, str], waiting: Mapping[Path, Expected]) -> None:
        self.waiting = dict(waiting)
        self.broken: dict[Path, str] = {}  # what is wrong with clips that waited, by the names of their records
        super().__init__(root, sources)
        drawn = {self.stem(index) for index in range(len(self))}
        self.waiting = {stem: expected for stem, expected in waiting.items() if stem in drawn}

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    def names(self, directory: str) -> list[Path]:
        names = {name.with_suffix(""): name for name in (*super().names(directory), *self._expected(directory))}
        return sorted(names.values())

    def holds(self, directory: str, name: Path) -> bool:
        expected = self.waiting.get(name.with_suffix(""))
        promised = expected is not None and name.suffix == SUFFIX and directory in expected.signatures
        return promised or super().holds(directory, name)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._make(self.stem(index))
        return super().__getitem__(index)

    def signature(self, index: int) -> Signature:
        expected = self.waiting.get(self.stem(index))
        if expected is None:
            return super().signature(index)
        return tuple(
            expected.signatures[name] if name in expected.signatures else signature(self.root / name / path)
            for name, path in self.examples[index].items()
        )

    def _expected(self, directory: str) -> Iterator[Path]:
        for stem, expected in self.waiting.items():
            if directory in expected.signatures:
                yield stem.with_name(f"{stem.name}{SUFFIX}")

    def _make(self, stem: Path) -> None:
        """Make the records of a clip that waits. Raises `UnreadableClipError`, at every draw of a broken one."""
        if stem in self.waiting:
            with ENCODER_LOCK:
                if (expected := self.waiting.get(stem)) is not None:
                    self._try(expected)
        if stem in self.broken:
            raise UnreadableClipError(self.broken[stem])

    def _try(self, expected: Expected) -> None:
        stem = expected.row.stem
        try:
            expected.make()
        except UnreadableClipError as error:
            logger.warning("%s is left out, another clip of its size takes its place: %s", stem, error)
            self.broken[stem] = str(error)
        del self.waiting[stem]
        if not self.waiting:
            expected.work.release()
