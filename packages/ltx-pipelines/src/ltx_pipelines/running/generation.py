"""Result of a run: latents, frames and sound, and the file they are saved to."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import MediaError
from ltx_core.textfiles import path_of
from ltx_core.types import Audio
from ltx_media.color import HDRColorSpace
from ltx_media.preview import single_frames
from ltx_media.writer import write_exr_files, write_hdr
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.running.kept import kept_encoding
from ltx_pipelines.running.output import PREVIEW, STILL, VIDEO, check_output, exr_folder
from ltx_pipelines.running.recipe import make_recipe, recipe_for
from ltx_pipelines.running.stage_inputs import KEYFRAMES, StageResult
from ltx_pipelines.utils.media_io import (
    RECIPE_KEY,
    write_png,
    write_png_sequence,
    write_preview,
    write_video,
    write_wav,
)


@dataclass(frozen=True)
class Frames:
    """The frames of a clip, decoded while they are read, and the same each time they are read."""

    decode: Callable[[], Iterator[Tensor]]  # chunks [f, H, W, 3], floats: in [0, 1], or in an HDR colour space

    def __iter__(self) -> Iterator[Tensor]:
        return self.decode()

    def tensor(self) -> Tensor:
        """All frames ``[F, H, W, 3]``, floats: in [0, 1], or in an HDR colour space."""
        return torch.cat(list(self))

    def __repr__(self) -> str:
        return "<Frames, decoded while they are read>"


@dataclass(frozen=True, repr=False)
class Generation:
    """Result of a ``plan``. ``save`` writes it to a file; ``video`` and ``audio`` are its frames and its sound.

    ``stages`` are the latents of each stage, ``upsampled`` what the enlarged stage began with, ``rng_state`` where the
    generator of noise stands after them, ``request`` what was asked.
    """

    plan: Plan
    stages: tuple[StageResult, ...]  # per stage: video [1, C, F, h, w], audio [1, C, T, M], keyframes [1, C, K, h, w]
    upsampled: Tensor | None = None  # what the enlarged stage began with [1, C, F, H, W]
    rng_state: Tensor | None = None  # of the generator after the stages: what a later stage goes on with
    video: Frames | None = None
    audio: Audio | None = None
    request: Mapping[str, Any] | None = None  # what was asked, for the recipe

    @property
    def latents(self) -> Mapping[str, Tensor]:
        """Of the last stage."""
        return self.stages[-1]

    @property
    def generated_keyframes(self) -> Tensor | None:
        """``[1, C, K, h, w]``, each a clip of its own, of the last stage that carried some on."""
        return next((stage[KEYFRAMES] for stage in reversed(self.stages) if KEYFRAMES in stage), None)

    @property
    def recipe(self) -> dict[str, Any]:
        """All it takes to make it again, as plain JSON values with absolute paths (`ltx_pipelines.running.recipe`)."""
        return make_recipe(self.plan, self.request, self._device)

    @property
    def _device(self) -> str:
        return str(next(iter(self.stages[0].values())).device)

    def save(self, path: str | Path, crf: float | None = None, absolute_paths: bool = False) -> Path:
        """Write it with its recipe: .mp4, .mov, .mkv, .webm, .gif, .webp, .png for one frame, .wav, .flac or
        .mp3 for sound alone, or a folder for PNG files.

        A file that is there is replaced. ``crf`` is the quality of a video file, 0 lossless. The recipe names files
        relative to ``path`` or without folders, unless ``absolute_paths``. Raises `MediaError` for a name it cannot be
        written to.
        """
        path = path_of(path)
        frames, hdr = self.plan.shape.frames, self.plan.hdr is not None
        check_output(path, self.plan.has_video, overwrite=True, hdr=hdr, frames=frames)
        write(self, path, recipe_for(path, self.plan, self.request, self._device, absolute_paths), crf=crf)
        return path

    def __repr__(self) -> str:
        shape, seed = self.plan.shape, f"{self.plan.pipeline}, seed {self.plan.seed}"
        size = f"{shape.frames} frames of {shape.width} x {shape.height}, " if self.plan.has_video else "sound, "
        kept = "" if self.video is not None or self.audio is not None else ", not decoded"
        return f"<Generation: {size}{shape.duration:.2f} s at {shape.fps:g} fps, {seed}{kept}>"

    def _repr_html_(self) -> str | None:
        """The clip itself, where a notebook shows it."""
        if self.video is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "clip.mp4").read_bytes()).decode()
        return f'<video controls loop src="data:video/mp4;base64,{data}"></video>'


def write(
    generation: Generation,
    path: Path,
    recipe: Mapping[str, Any],
    watch: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
    crf: float | None = None,
) -> None:
    """The result to the kind of file its name asks for, with the recipe inside where the kind can hold it.

    ``watch`` is given the chunks of frames on their way to the file. ``crf`` is that of an MP4.
    """
    metadata = {RECIPE_KEY: json.dumps(recipe, ensure_ascii=False)}
    fps, suffix = generation.plan.shape.fps, path.suffix.lower()
    if generation.video is None:
        if generation.audio is None:
            raise MediaError(f"{path}: there is neither picture nor sound to write")
        write_wav(path, generation.audio, metadata)
    elif generation.plan.hdr is not None:
        space, chunks = HDRColorSpace(generation.plan.hdr), watch(generation.video)
        if suffix in VIDEO:
            write_hdr(path, exr_folder(path), chunks, fps, generation.audio, space, metadata)
        else:
            write_exr_files(path, chunks, space)
    elif suffix in VIDEO:
        encoding = kept_encoding(generation.plan, crf, path)
        write_video(path, watch(generation.video), fps, generation.audio, encoding, metadata)
    elif suffix in PREVIEW:
        write_preview(path, watch(generation.video), fps, metadata=metadata)
    elif suffix in STILL:
        (frame,) = single_frames(watch(generation.video))
        write_png(path, frame, metadata)
    else:
        write_png_sequence(path, watch(generation.video), metadata)
