"""Pipelines under the names MLX users know: thin doors to the shared ones, with MLX as their backend.

This file and `generate` are the two of the package that know ``ltx_pipelines``, and import it when they are used: the
networks serve any caller. What a pipeline does is described where it is defined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ltx_core.errors import ConfigError

if TYPE_CHECKING:
    from ltx_pipelines.pipeline import Pipeline
    from ltx_pipelines.planning.plan import Plan
    from ltx_pipelines.running.generation import Generation
    from ltx_pipelines.running.stages import Event

FRAMES_STEP = 8


@dataclass(frozen=True)
class GenerationConfig:
    """A clip to make; None leaves a value to the model.

    ``height`` and ``width`` in pixels, ``num_frames`` of 8k + 1, ``frame_rate`` in frames a second, ``seed`` of the
    noise, ``negative_prompt`` for what guidance leads away from, ``num_inference_steps`` of each guided stage. Raises
    ``ConfigError`` for a length a clip cannot have.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    frame_rate: float | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and (self.num_frames < 1 or self.num_frames % FRAMES_STEP != 1):
            nearest = max(round((self.num_frames - 1) / FRAMES_STEP), 0) * FRAMES_STEP + 1
            raise ConfigError(f"num_frames is {self.num_frames}, expected 8k+1; nearest valid: {nearest}")

    def request(self) -> dict[str, Any]:
        """The fields of a request that are given."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


@dataclass(frozen=True)
class OneStageCFGConfig(GenerationConfig):
    """A `GenerationConfig` with guidance of both streams: ``cfg_scale`` leads towards the prompt, 1 is off."""

    cfg_scale: float | None = None

    def request(self) -> dict[str, Any]:
        given = super().request()
        if (scale := given.pop("cfg_scale", None)) is not None:
            from ltx_core.components.guiders import MultiModalGuiderParams

            given |= dict.fromkeys(("video_guider_params", "audio_guider_params"), MultiModalGuiderParams(scale))
        return given


@dataclass(frozen=True)
class TwoStageCFGConfig(OneStageCFGConfig):
    """A `OneStageCFGConfig` whose ``cfg_scale`` is for the first of two stages; the second is not guided."""


class Door:
    """A shared pipeline on a model, computed with MLX."""

    target: ClassVar[str]  # module:Class of the shared pipeline

    def __init__(self, model: str | Path = "tiny", loras: Any = (), **session: Any) -> None:
        """A pipeline on ``model``: a file, a folder, a hub id or "tiny", the bundled one; ``loras`` are adapters.

        ``session`` is that of the `ModelLedger`: ``dtype``, ``policy``, ``quantization``, ``embedding_cache``. Raises
        ``ConfigError`` for what is none, ``CheckpointError`` for files that are missing or foreign.
        """
        module, _, name = self.target.partition(":")
        kind = getattr(import_module(f"ltx_pipelines.{module}"), name)
        self.pipeline: Pipeline = kind.from_pretrained(model, loras, **{"backend": "mlx", **session})

    def plan(self, prompt: str, config: GenerationConfig | None = None, **request: Any) -> Plan:
        """The plan of the clip; reads no weights."""
        return self.pipeline.plan(prompt, **request_of(config), **request)

    def stream(self, prompt: str, config: GenerationConfig | None = None, **request: Any) -> Iterator[Event]:
        """The run as events; close it to cancel."""
        return self.pipeline.stream(prompt, **request_of(config), **request)

    def generate(self, prompt: str, config: GenerationConfig | None = None, **request: Any) -> Generation:
        """Frames and sound of a prompt. ``request`` are further fields of the pipeline, such as ``images``."""
        return self.pipeline(prompt, **request_of(config), **request)

    __call__ = generate


def request_of(config: GenerationConfig | None) -> Mapping[str, Any]:
    return {} if config is None else config.request()


class TextToVideoPipeline(Door):
    """Text to video with sound, in one guided stage."""

    target = "ti2vid_one_stage:TI2VidOneStagePipeline"


class OneStagePipeline(Door):
    """Text and images to video with sound, in one guided stage."""

    target = "ti2vid_one_stage:TI2VidOneStagePipeline"


class TwoStagePipeline(Door):
    """A guided stage at half size, refined at full size with the distilled adapter."""

    target = "ti2vid_two_stages:TI2VidTwoStagesPipeline"


class DistilledPipeline(Door):
    """Two stages without guidance on a distilled model."""

    target = "distilled:DistilledPipeline"


class KeyframeInterpolationPipeline(Door):
    """From picture to picture."""

    target = "keyframe_interpolation:KeyframeInterpolationPipeline"


class ICLoraPipeline(Door):
    """Controlled by a reference clip through an in-context adapter."""

    target = "ic_lora:ICLoraPipeline"


def create_pipeline(model: str | Path = "tiny", loras: Any = (), **session: Any) -> TextToVideoPipeline:
    """A `TextToVideoPipeline` on a ``model``; ``loras`` and ``session`` as in `Door`."""
    return TextToVideoPipeline(model, loras, **session)


def create_one_stage_pipeline(model: str | Path = "tiny", loras: Any = (), **session: Any) -> OneStagePipeline:
    """A `OneStagePipeline` on a ``model``; ``loras`` and ``session`` as in `Door`."""
    return OneStagePipeline(model, loras, **session)


def create_two_stage_pipeline(model: str | Path = "tiny", loras: Any = (), **session: Any) -> TwoStagePipeline:
    """A `TwoStagePipeline` on a ``model``; ``loras`` and ``session`` as in `Door`."""
    return TwoStagePipeline(model, loras, **session)


def create_distilled_pipeline(model: str | Path = "tiny", loras: Any = (), **session: Any) -> DistilledPipeline:
    """A `DistilledPipeline` on a ``model``; ``loras`` and ``session`` as in `Door`."""
    return DistilledPipeline(model, loras, **session)


def create_keyframe_interpolation_pipeline(
    model: str | Path = "tiny", loras: Any = (), **session: Any
) -> KeyframeInterpolationPipeline:
    """A `KeyframeInterpolationPipeline` on a ``model``; ``loras`` and ``session`` as in `Door`."""
    return KeyframeInterpolationPipeline(model, loras, **session)


def create_ic_lora_pipeline(model: str | Path = "tiny", loras: Any = (), **session: Any) -> ICLoraPipeline:
    """An `ICLoraPipeline` on a ``model``; ``loras`` and ``session`` as in `Door`."""
    return ICLoraPipeline(model, loras, **session)
