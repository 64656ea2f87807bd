"""Options of the preparation of a data set, once: those of the commands and values of the code.

Nothing here imports torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_core.errors import ConfigError
from ltx_core.parallel.executor import Cluster
from ltx_trainer.command_options import shown
from ltx_trainer.processing.buckets import Bucket

if TYPE_CHECKING:
    import torch


def default_device() -> str:
    """The accelerator of this process, else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class ProcessingOptions:
    """Processing of a data set. ``fps`` None keeps each clip's own frame rate.

    ``buckets`` are the sizes, in pixels and frames, that clips are brought to; ``audio_durations`` the lengths, in
    seconds, that sound without video is cut to: the longest that it fills, its own where there are none. ``tiling``
    encodes large pictures in pieces; ``random_crop`` cuts clips anywhere instead of at their centre. ``long_clips``
    says what is taken of a clip longer than its bucket: the ``first`` part, ``chunks`` side by side, or parts that
    ``slide`` by ``stride`` frames, at least 1 (None: half a bucket). ``skip_audio`` leaves the sound of videos out.

    ``trigger`` is a word put in front of every caption, None for none; ``remove_openings`` drops stock openings such as
    "The video shows".

    ``keyframes`` are frames encoded alone too, -1 the last. ``control`` makes references of the clips: ``canny``,
    ``downscale``, ``blur``, ``depth:FOLDER`` or ``pose:FOLDER``; None makes none. References are
    ``reference_downscale_factor`` times smaller than their targets and keep every n-th frame, n being
    ``reference_temporal_scale_factor``; 1 changes nothing.

    ``overwrite`` makes records again that are there already. ``batch_size`` clips or captions, at least 1, are
    encoded together on ``device``, by default the accelerator; ``workers`` threads read clips ahead (0: none).
    ``text_encoder_in_8bit`` halves the text encoder's memory. ``ray`` works on a Ray cluster, at ``ray_address``
    (empty: this machine's, or a new one), with ``ray_workers`` there (0: one per GPU, else one per machine).

    Nothing is checked here: `process_dataset` raises `ConfigError` for an unknown control, and for keyframes and
    reference factors that do not fit the buckets.
    """

    buckets: tuple[Bucket, ...] = ()
    audio_durations: tuple[float, ...] = ()  # seconds; of sound without video
    fps: float | None = field(
        default=None, metadata=shown("Bring all clips to this frame rate; sound stays in step.", min=0.1)
    )
    skip_audio: bool = field(default=False, metadata=shown("Leave the sound of videos out.", "--skip-audio"))
    trigger: str | None = field(default=None, metadata=shown("Word put in front of every caption.", "--lora-trigger"))
    remove_openings: bool = field(
        default=False, metadata=shown('Drop openings like "The video shows".', "--remove-llm-prefixes")
    )
    reference_downscale_factor: int = field(
        default=1, metadata=shown("References are this much smaller than their targets.", min=1)
    )
    reference_temporal_scale_factor: int = field(default=1, metadata=shown("References keep every n-th frame.", min=1))
    tiling: bool = field(
        default=False, metadata=shown("Encode large pictures in pieces, in less memory.", "--vae-tiling")
    )
    random_crop: bool = field(
        default=False, metadata=shown("Cut clips anywhere, not at their centre.", "--random-crop")
    )
    long_clips: str = field(default="first", metadata=shown("Of clips longer than a bucket: first, chunks or slide."))
    stride: int | None = field(default=None, metadata=shown("Frames from part to part of slide.", min=1))
    keyframes: list[int] = field(
        default_factory=list,
        metadata=shown("Frame to encode alone too, -1 the last; repeat it for more.", "--keyframe"),
    )
    control: str | None = field(
        default=None, metadata=shown("Make references of the clips: canny, downscale, blur, depth:FOLDER, pose:FOLDER.")
    )
    overwrite: bool = field(default=False, metadata=shown("Make records again that are there already.", "--overwrite"))
    batch_size: int = field(default=1, metadata=shown("Clips, or captions, encoded together.", min=1))
    workers: int = field(default=2, metadata=shown("Threads that read clips ahead.", min=0))
    device: str = field(
        default_factory=default_device,
        metadata=shown("cpu, cuda, cuda:1 ...; the accelerator by default."),
    )
    text_encoder_in_8bit: bool = field(
        default=False, metadata=shown("In half the memory.", "--load-text-encoder-in-8bit")
    )

    ray: bool = field(default=False, metadata=shown("On a Ray cluster, this machine's or a new one.", "--ray"))
    ray_address: str = field(default="", metadata=shown("Of another cluster."))
    ray_workers: int = field(default=0, metadata=shown("There; 0 for one per GPU, else one per machine.", min=0))

    @property
    def cluster(self) -> Cluster | None:
        """The cluster to process on, None for here. Raises `ConfigError` for what has no effect."""
        if not self.ray:
            if self.ray_address or self.ray_workers:
                raise ConfigError("ray_address and ray_workers have no effect without ray, expected them left out")
            return None
        if self.device != default_device():
            raise ConfigError(f"device is {self.device}, expected it left out: every worker has its own")
        return Cluster(self.ray_address, self.ray_workers)

    @property
    def dtype(self) -> torch.dtype:
        """Of the video and the text encoder."""
        from ltx_core.precision import resolve

        return resolve("auto", self.device).dtype


@dataclass(frozen=True)
class Columns:
    """A table's own names for its columns."""

    video_column: str | None = field(
        default=None, metadata=shown("Column of the videos; video or media_path by default.")
    )
    caption_column: str | None = field(default=None, metadata=shown("Column of the captions; caption by default."))

    @property
    def names(self) -> tuple[str | None, str | None]:
        return self.video_column, self.caption_column


@dataclass(frozen=True)
class SceneOptions:
    """Detection of scenes. Lengths are frames (``15``), seconds (``2s``) or timecodes (``00:00:02.000``)."""

    detector: str = field(default="content", metadata=shown("content, adaptive, threshold or histogram."))
    threshold: float | None = field(default=None, metadata=shown("Of the detector; its own by default."))
    min_scene_length: str = field(default="15", metadata=shown('Frames, "2s" or a timecode.'))
    filter_shorter_than: str | None = field(default=None, metadata=shown("Leave shorter scenes out."))
    max_scenes: int | None = field(default=None, metadata=shown("At most so many.", min=1))
    duration: str | None = field(default=None, metadata=shown("Look at the beginning only."))
    luma_only: bool = field(default=False, metadata=shown("Content, adaptive: ignore colour.", "--luma-only"))
    adaptive_window: int = field(default=2, metadata=shown("Adaptive: frames to each side.", min=1))
    fade_bias: float = field(default=0.0, metadata=shown("Threshold: where in a fade to cut, -1 to 1."))
    downscale: int | None = field(default=None, metadata=shown("Look at pictures this much smaller.", min=1))
    frame_skip: int = field(default=0, metadata=shown("Frames left out between those looked at.", min=0))
    stats_file: Path | None = field(default=None, metadata=shown("Figures per frame, as csv."))
