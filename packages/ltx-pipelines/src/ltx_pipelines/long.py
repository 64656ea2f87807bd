"""Clips of any length with sound, window after window, that go on where they were stopped.

Their scenes may be read from a storyboard (`read_storyboard`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from ltx_core.components.strength import Curve
from ltx_core.components.windows import WindowPlan, pixel_frames, plan_windows, stride_grid
from ltx_core.errors import ConditioningError, ConfigError
from ltx_core.textfiles import read_yaml
from ltx_core.types import VideoPixelShape
from ltx_pipelines.ltx_video.pipeline import LTXVideoPipeline, LTXVideoRequest
from ltx_pipelines.pipeline import COMMON, GUIDED, FullOrDistilledPipeline
from ltx_pipelines.planning.layout import PaddedSize
from ltx_pipelines.planning.plan import ImageCondition, LongClip, Plan, Scene, StagePlan, Window
from ltx_pipelines.planning.schema import File, Misfit, UsageError, fit
from ltx_pipelines.request import AutoDuration, FullOrDistilledRequest, Request, condition, sampling, size

WIDEST = 6  # latent frames of the coarsest grid of the sound that a window is made longer for
WINDOW = 80  # pixel frames of a window where neither request nor model says anything


@dataclass(frozen=True)
class LongRequest(FullOrDistilledRequest):
    """A request with its windows, and what holds them together."""

    storyboard: File | None = condition(
        None, "YAML file of scenes: prompt, seconds, keyframes, camera; the prompt then stands before each of them."
    )
    window: int | None = size(
        None, "Longest part made at once.", "--window", unit="frames", least=9, shown="the model's, else 80"
    )
    overlap: int = size(24, "What a window goes on from, at least.", "--overlap", unit="frames", least=1)
    overlap_strength: float = condition(
        1.0, "How firmly the oldest of that is held; below 1 it falls with sigma.", least=0, most=1
    )
    overlap_curve: Curve = condition("smoothstep", "How the hold falls towards the new part.")
    anchor: File | None = condition(None, "Picture that every window sees, before its time 0.")
    anchor_first: bool = condition(False, "The clip's first frame as anchor.")
    adain: float = condition(
        0.0, "Share by which statistics are moved to the first window's, 0.1 to 0.3.", least=0, most=1
    )
    pipeline_config: str | None = sampling(
        None, "Settings of an LTX-Video model, as for `ltx ltxv`.", metavar="NAME", shown="by file name"
    )


class LongVideoPipeline(FullOrDistilledPipeline):
    """One stage in windows. Each goes on from the last latents and sound of the one before, and is decoded and written
    before the next begins, so that memory does not grow with the length.

    Stopped, the same command goes on behind the last whole window, and the file is the same to the bit. With an
    LTX-Video model the clip has no sound and is made in the first of its passes.
    """

    accepts = COMMON | GUIDED | {"images", "keyframe_fade", "sparse_attention"}
    usual: ClassVar[Mapping[str, Any]] = {"height": 512, "width": 768, "num_frames": 241}
    aliases = ("long-video",)

    def fill(self, read: Mapping[str, Any]) -> Request:
        useless = [name for name in read if name in GUIDED]
        if useless and self.ledger.is_ltx_video and useless != ["negative_prompt"]:
            raise UsageError(f"{useless[0]} has no effect on an LTX-Video model; its pipeline_config says it")
        if self.ledger.is_ltx_video and read.get("keyframe_fade"):
            raise UsageError("keyframe_fade has no effect on an LTX-Video model, expected it left out")
        if "storyboard" in read and (given := sorted(read.keys() & {"num_frames", "duration"})):
            raise UsageError(f"{given[0]} has no effect with a storyboard, whose scenes have their own length")
        if "anchor" in read and read.get("anchor_first"):
            raise UsageError("the anchor is given twice: anchor and anchor_first")
        return super().fill(read)

    def wishes(self) -> dict[str, Any]:
        wanted = LTXVideoPipeline.usual if self.ledger.is_ltx_video else super().wishes()
        return {name: value for name, value in wanted.items() if name != "num_frames"}

    def _length(self, read: Mapping[str, Any], merged: Mapping[str, Any]) -> int | AutoDuration:
        if (seconds := read.get("duration")) is not None:
            return max(round(seconds * merged.get("frame_rate", 24.0)), 1)
        return super()._length(read, merged)

    def make_plan(self, request: LongRequest) -> Plan:
        board = self.board(request)
        request = replace(request, images=board.images)
        fps = float(request.frame_rate or 24.0)
        plan = self.windows(request, board.seconds, Fraction(fps).limit_denominator(1001))
        asked = request.shape(plan.requested_frames)
        for image in board.images:
            image.check_place(asked.frames)
        more: dict[str, Any] = {}
        if self.ledger.is_ltx_video:
            stage, more = self.ltx_video_stage(request, asked, plan)
        else:
            shape = self.shape(replace(request, num_frames=plan.frames))
            stage = self.stage_of(request, shape, request.images, self.ledger.defaults.ancestral_stage_1)
        windows = tuple(window_of(plan, number, "audio" in stage.streams) for number in range(len(plan.windows)))
        delivered = asked if self.ledger.is_ltx_video else stage.shape._replace(frames=asked.frames)
        anchor = "first" if request.anchor_first else request.anchor
        held = (request.overlap_strength, request.overlap_curve)
        return self.finish_plan(
            replace(request, prompt=board.scenes[0].prompt),
            [replace(stage, windows=windows, delivered=None if delivered == stage.shape else delivered)],
            long=LongClip(board.scenes, *held, anchor, request.adain),
            **more,
        )

    def board(self, request: LongRequest) -> Storyboard:
        """The scenes of a request, with all pictures; one scene where there is no storyboard."""
        fps = float(request.frame_rate or 24.0)
        if request.storyboard is not None:
            read = read_storyboard(request.storyboard, fps, request.prompt)
            return replace(read, images=(*request.images, *read.images))
        assert isinstance(request.num_frames, int)
        return Storyboard((Scene(request.prompt),), request.images, request.num_frames / fps)

    def windows(self, request: LongRequest, seconds: float, fps: Fraction) -> WindowPlan:
        """Windows of the clip: on the grid of the sound where that fits, else at most 20 ms off it."""
        if self.ledger.scale_factors.time != pixel_frames(2) - 1:
            raise ConfigError(f"the VAE has {self.ledger.scale_factors.time} frames a latent, long clips need 8")
        factors, grid = self.ledger.scale_factors, stride_grid(fps)
        shared = factors.latent_frames(factors.cover_frames(request.overlap + 1)) - 1
        usual = self.ledger.default_request.get("num_frames", WINDOW)
        longest = request.window or max(usual, pixel_frames(shared + grid) if grid <= WIDEST else 0)
        frames = Fraction(round(Fraction(seconds) * fps))
        times = (frames / fps, longest / fps, request.overlap / fps)
        exact = grid <= factors.latent_frames(longest) - shared and not self.ledger.is_ltx_video
        return plan_windows(fps, *times, align="exact" if exact else "nearest")

    def ltx_video_stage(
        self, request: LongRequest, asked: VideoPixelShape, plan: WindowPlan
    ) -> tuple[StagePlan, dict[str, Any]]:
        """The stage of an LTX-Video model, with levels for the size of a window."""
        from ltx_pipelines.ltx_video.schedule import SchedulerConfig

        pipeline = LTXVideoPipeline(self.ledger, self.loras)
        names = [one.name for one in fields(LTXVideoRequest) if hasattr(request, one.name)]
        like = LTXVideoRequest(**{name: getattr(request, name) for name in names})
        config = pipeline.config_of(like)
        whole = PaddedSize.of(asked, self.ledger.scale_factors)
        pipeline.check_media(like, whole)
        if any(self.probe(image.path).frames > 1 for image in like.images):
            raise ConditioningError("images of a long clip are stills, expected no clip")
        part = whole.padded._replace(frames=pixel_frames(min(plan.window_latents, plan.latents)))
        scheduler = SchedulerConfig.chosen(config.sampler, self.ledger.config)
        stage = pipeline.stage(like, config, config.passes[0], scheduler, part, again=False)
        return replace(stage, shape=whole.padded), {"ltx_video": config.decoding(asked, config.passes[0])}


def window_of(plan: WindowPlan, number: int, has_sound: bool) -> Window:
    """A window of latents as one of pixel frames, whose first frame is the last of its first latent."""
    window = plan.windows[number]
    start, end = window.latents
    tokens = window.audio if has_sound else None
    return Window(pixel_frames(start + 1) - 1, pixel_frames(end) - 1, 0, window.overlap_latents, tokens)


# The storyboard ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneKeyframe:
    """A picture ``at`` seconds into its scene; the rest as in `ImageCondition`."""

    image: str
    at: float = 0.0
    strength: float = 1.0
    release: Curve = "hold"
    reach: int = 0
    curve: Curve = "hold"


@dataclass(frozen=True)
class BoardScene:
    """A scene as the file says it."""

    prompt: str
    seconds: float
    camera: str | None = None
    keyframes: tuple[SceneKeyframe, ...] = ()


@dataclass(frozen=True)
class Storyboard:
    """Scenes in their order, with all pictures by their frame in the whole clip."""

    scenes: tuple[Scene, ...]
    images: tuple[ImageCondition, ...]
    seconds: float


def read_storyboard(path: str, fps: float, common: str = "") -> Storyboard:
    """Read the scenes of a long clip from a YAML file, each with its prompt, length, pictures and camera::

        - prompt: a red ball bounces
          seconds: 4
          keyframes:
            - {image: ball.png, at: 0.5, strength: 0.8, release: smoothstep}
        - prompt: a blue box spins
          seconds: 3
          camera: pan left 15

    ``common`` stands before every prompt. Pictures are looked for beside the file. Raises `ConfigError` that names the
    file, the scene and what does not fit.
    """
    listed = read_yaml(Path(path))
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path}: holds {type(listed).__name__}, expected a list of scenes")
    scenes: list[Scene] = []
    images: list[ImageCondition] = []
    start = 0.0
    for number, entry in enumerate(listed, 1):
        scene = _read_scene(entry, f"{path}: scene {number}")
        scenes.append(Scene(f"{common} {scene.prompt}".strip(), round(start * fps), scene.camera))
        for key in scene.keyframes:
            if not 0 <= key.at < scene.seconds:
                raise ConfigError(f"{path}: scene {number}: at is {key.at:g} s, the scene has {scene.seconds:g} s")
            place = str(Path(path).parent / key.image)
            frame = round((start + key.at) * fps)
            images.append(ImageCondition(place, frame, key.strength, None, key.release, key.reach, key.curve))
        start += scene.seconds
    return Storyboard(tuple(scenes), tuple(images), start)


def _read_scene(entry: object, where: str) -> BoardScene:
    try:
        scene: BoardScene = fit(BoardScene, entry)
    except (Misfit, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from None
    if not scene.seconds > 0:
        raise ConfigError(f"{where}: seconds is {scene.seconds:g}, expected more than 0")
    if not scene.prompt.strip():
        raise ConfigError(f"{where}: prompt is empty, expected a description of the scene")
    return scene
