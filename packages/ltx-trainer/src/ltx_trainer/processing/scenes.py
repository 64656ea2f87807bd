"""Cutting a long video into its scenes, found by PySceneDetect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ltx_core.errors import ConfigError, MediaError
from ltx_media.audio import read_audio
from ltx_media.video import probe_video, read_frames_at
from ltx_media.writer import write_video
from ltx_trainer.processing.options import SceneOptions
from ltx_trainer.processing.progress import progress

DETECTORS = {
    "content": "ContentDetector",
    "adaptive": "AdaptiveDetector",
    "threshold": "ThresholdDetector",
    "histogram": "HistogramDetector",
}
THRESHOLDS = {"adaptive": "adaptive_threshold"}  # what a detector calls its threshold, if not threshold


@dataclass(frozen=True)
class Scene:
    """A part of a video, in seconds."""

    start: float
    end: float


def find_scenes(video: Path, options: SceneOptions) -> list[Scene]:
    """Scenes in order; the whole video where no cut is found. Raises `ConfigError` without the library."""
    probe_video(video)
    library = _library()
    statistics = library.StatsManager() if options.stats_file else None
    manager = library.SceneManager(statistics)
    if options.downscale:
        manager.auto_downscale, manager.downscale = False, options.downscale
    stream = library.open_video(str(video))
    rate = stream.frame_rate
    manager.add_detector(_detector(library, options, rate))
    end = None if options.duration is None else library.FrameTimecode(_length(options.duration), rate)
    manager.detect_scenes(stream, duration=end, frame_skip=options.frame_skip)
    if statistics is not None:
        statistics.save_to_csv(str(options.stats_file))
    scenes = [Scene(start.seconds, end.seconds) for start, end in manager.get_scene_list(start_in_scene=True)]
    if options.filter_shorter_than is not None:
        shortest = library.FrameTimecode(_length(options.filter_shorter_than), rate).seconds
        scenes = [scene for scene in scenes if scene.end - scene.start >= shortest]
    return scenes[: options.max_scenes]


def split_scenes(video: Path, output: Path, options: SceneOptions, save_images: int = 0) -> list[Path]:
    """Write each scene of ``video`` as ``<stem>-scene-001.mp4`` with its sound below ``output``, and return the files.

    ``save_images`` pictures of each are written beside it. A scene's file that is there already is kept.
    """
    info, scenes = probe_video(video), find_scenes(video, options)
    if not scenes:
        raise MediaError(f"{video}: no scene is left; lower filter_shorter_than")
    paths = []
    for number, scene in enumerate(progress(scenes, "scenes", len(scenes)), 1):
        path = output / f"{video.stem}-scene-{number:03d}.mp4"
        paths.append(path)
        if path.is_file():
            continue
        first = info.start + scene.start
        count = round((scene.end - scene.start) * float(info.fps))
        every = max(count // save_images, 1) if save_images else None
        frames = _take(read_frames_at(video, info.fps, count, first), path, every)
        write_video(path, frames, info.fps, read_audio(video, first, scene.end - scene.start))
    return paths


def _take(frames: Iterable[Tensor], path: Path, every: int | None) -> Iterator[Tensor]:
    """Frames with even sides; every n-th is written as a picture too."""
    for index, frame in enumerate(frames):
        if every and index % every == every // 2:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame.numpy()).save(path.with_name(f"{path.stem}-{index // every + 1:02d}.jpg"))
        yield frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]


def _library() -> Any:
    try:
        import scenedetect
    except ImportError as error:
        raise ConfigError("splitting scenes needs `pip install scenedetect`") from error
    return scenedetect


def _detector(library: Any, options: SceneOptions, rate: Any) -> Any:
    if options.detector not in DETECTORS:
        raise ConfigError(f"detector is {options.detector!r}, expected one of {', '.join(DETECTORS)}")
    arguments: dict[str, Any] = {"min_scene_len": library.FrameTimecode(_length(options.min_scene_length), rate)}
    if options.threshold is not None:
        arguments[THRESHOLDS.get(options.detector, "threshold")] = options.threshold
    if options.detector in ("content", "adaptive"):
        arguments["luma_only"] = options.luma_only
    if options.detector == "adaptive":
        arguments["window_width"] = options.adaptive_window
    if options.detector == "threshold":
        arguments["fade_bias"] = options.fade_bias
    return getattr(library, DETECTORS[options.detector])(**arguments)


def _length(text: str) -> int | str:
    """A length as the library takes it: whole frames as a number, all else as text."""
    return int(text) if text.isdigit() else text
