"""What a user may ask for, under the names of the field. Every pipeline takes some of it and refuses the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import ConfigError, nearest_hint
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape, nearest_multiple
from ltx_pipelines.planning.plan import ImageCondition

Sizes = tuple[int, int]


@dataclass(frozen=True)
class AutoDuration:
    """Let the model choose the length from the prompt, within these seconds."""

    min_seconds: float = 1.0
    max_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ConfigError(
                f"auto duration is {self.min_seconds} to {self.max_seconds} seconds, expected 0 < min <= max"
            )


@dataclass(frozen=True)
class Request:
    """One clip. None means: the pipeline's or the model's default."""

    prompt: str = ""
    negative_prompt: str | None = None
    seed: int = 10
    height: int | None = None  # pixels
    width: int | None = None  # pixels
    num_frames: int | AutoDuration | None = None
    frame_rate: float | None = None  # frames per second
    num_inference_steps: int | None = None
    sigmas: tuple[float, ...] | None = None  # of the first stage
    video_guider_params: MultiModalGuiderParams | None = None
    audio_guider_params: MultiModalGuiderParams | None = None
    max_batch_size: int = 1  # guidance passes per transformer call
    images: tuple[ImageCondition, ...] = ()
    generated_keyframes: int | tuple[int, ...] = 0
    video_conditioning: tuple[tuple[str, float], ...] = ()  # (reference clip, strength)
    conditioning_attention_strength: float = 1.0
    conditioning_attention_mask: str | None = None  # grey video, white = attend
    skip_stage_2: bool = False
    audio_path: str | None = None
    audio_start_time: float = 0.0  # seconds
    audio_max_duration: float | None = None  # seconds
    video_path: str | None = None
    start_time: float | None = None  # seconds
    end_time: float | None = None  # seconds
    regenerate_video: bool = True
    regenerate_audio: bool = True
    extend_seconds: float | None = None
    direction: Literal["after", "before"] = "after"
    reference_video_path: str | None = None  # clip with sound
    reference_strength: float = 1.0
    temporal_upsample_rounds: int = 0  # each doubles the frame rate
    snap: bool = False  # move invalid sizes and frame counts to the nearest valid ones

    @classmethod
    def of(cls, given: Mapping[str, Any], accepts: Collection[str], who: str) -> Request:
        """A request from keyword arguments.

        Raises `ConfigError` for a name nobody knows, with the nearest known one, and for one ``who`` has no use for.
        """
        known = {field.name for field in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"{who} has no argument {name}{nearest_hint(name, sorted(accepts))}")
            if name not in accepts and value != getattr(cls, name):
                raise ConfigError(f"{name} has no effect in {who}, expected it left out")
        return cls(**{name: _frozen(value) for name, value in given.items()})

    def shape(self, default_size: Sizes, frames: int | None = None, fps: float | None = None) -> VideoPixelShape:
        """The delivered shape; ``default_size`` is height, width."""
        return VideoPixelShape(
            batch=1,
            frames=frames or (self.num_frames if isinstance(self.num_frames, int) else 121),
            height=default_size[0] if self.height is None else self.height,
            width=default_size[1] if self.width is None else self.width,
            fps=float(fps or self.frame_rate or 24.0),
        )


def fitted(
    shape: VideoPixelShape, factors: SpatioTemporalScaleFactors, multiple: int, snap: bool
) -> tuple[VideoPixelShape, tuple[str, ...]]:
    """A shape the VAE can hold, and a line for each value that was moved; refuses instead unless ``snap``."""
    if not snap:
        factors.check(shape, multiple)
        return shape, ()
    near = shape._replace(
        frames=factors.nearest_frames(shape.frames),
        height=nearest_multiple(shape.height, factors.height * multiple),
        width=nearest_multiple(shape.width, factors.width * multiple),
    )
    factors.check(near, multiple)
    names = {"frames": "frames", "height": "height", "width": "width"}
    moved = [
        f"{label} {getattr(shape, name)} -> {getattr(near, name)}"
        for name, label in names.items()
        if getattr(shape, name) != getattr(near, name)
    ]
    return near, tuple(moved)


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    """A value type from its fields by name."""
    known = [field.name for field in fields(kind)]
    if unknown := [name for name in values if name not in known]:
        hint = nearest_hint(unknown[0], known) or f", expected some of {', '.join(known)}"
        raise ConfigError(f"{kind.__name__} has no field {unknown[0]}{hint}")
    return kind(**values)


def _frozen(value: Any) -> Any:
    """Lists become tuples; dictionaries become the value types they describe."""
    if isinstance(value, Mapping):
        return _built(ImageCondition if "path" in value else MultiModalGuiderParams, value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(_frozen(item) for item in value)
    return value
