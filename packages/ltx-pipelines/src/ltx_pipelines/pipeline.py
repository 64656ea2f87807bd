"""What every pipeline is: a function from a request to a plan, on a ledger of networks, run by the one engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import ConfigError
from ltx_core.guidance.negative_prompt import DEFAULT_NEGATIVE_PROMPT
from ltx_core.types import VideoPixelShape
from ltx_pipelines.bounds import GUIDERS, check_request
from ltx_pipelines.planning.plan import Condition, Lora, Plan, StagePlan
from ltx_pipelines.planning.stages import default_guidance, keyframe_slots
from ltx_pipelines.planning.validation import validate_plan
from ltx_pipelines.request import AutoDuration, Request, fitted
from ltx_pipelines.running.engine import Event, Generation, generate
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.utils.media_io import probe_video
from ltx_pipelines.utils.model_ledger import ModelLedger

COMMON = frozenset({"prompt", "seed", "height", "width", "num_frames", "frame_rate", "sigmas", "snap"})
GUIDED = frozenset(
    {"negative_prompt", "num_inference_steps", "video_guider_params", "audio_guider_params", "max_batch_size"}
)
Loras = Sequence[Lora | str | tuple[str, float]]


class Pipeline(ABC):
    """A task. Subclasses say what they accept and how a request becomes a plan."""

    #: Request fields that have an effect.
    accepts: ClassVar[frozenset[str]] = COMMON
    #: Height and width when the request names none.
    default_size: ClassVar[tuple[int, int]] = (512, 768)
    #: 2 where a twofold enlargement follows the first stage.
    size_multiple: ClassVar[int] = 1
    #: Whether the size is that of a given clip, unless the request names another.
    keeps_size: ClassVar[bool] = False
    #: Whether the length may be left to the model.
    auto_duration: ClassVar[bool] = False

    def __init__(self, ledger: ModelLedger, loras: Loras = (), distilled_loras: Loras = ()) -> None:
        self.ledger = ledger
        self.loras = as_loras(loras)
        self.distilled_loras = as_loras(distilled_loras)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, loras: Loras = (), distilled_loras: Loras | None = None, **session: Any
    ) -> Self:
        """A pipeline on ``model``: a file, a folder, a hub id, or ``"tiny"`` for the bundled model.

        ``session`` goes to the `ModelLedger` (``dtype``, ``device``, ``policy``, ``quantization``). Distilled adapters
        found beside the model are used where the pipeline needs them, unless some are given.
        """
        found = find_model(str(model))
        distilled = found.distilled_loras if distilled_loras is None else distilled_loras
        return cls(ModelLedger(found.files, **session), loras, distilled)

    @abstractmethod
    def make_plan(self, request: Request) -> Plan:
        """The plan of a request whose length is decided."""

    def plan(self, **request: Any) -> Plan:
        """The validated plan of keyword arguments, without reading any weight (but those of an auto duration).

        What is left out, or None, is as the model wants it, else as is usual for this pipeline. Raises `ConfigError`,
        `ConditioningError` or `MediaError` that names the field and the nearest valid value.
        """
        wanted = self.default_request()
        given = {name: value for name, value in request.items() if value is not None or name not in wanted}
        asked = Request.of({**wanted, **given}, self.accepts, type(self).__name__)
        check_request(vars(asked), self.ledger)
        if isinstance(asked.num_frames, AutoDuration) and not self.auto_duration:
            raise ConfigError(f"num_frames is automatic, {type(self).__name__} needs a number")
        plan = self.make_plan(asked)
        validate_plan(plan, self.ledger)
        return plan

    def stream(self, **request: Any) -> Iterator[Event]:
        """Run a request event by event; the last event carries the `Generation`. Close the iterator to cancel."""
        return generate(self.plan(**request), self.ledger)

    def __call__(
        self,
        *,
        callback: Callable[[Event], None] | None = None,
        output_type: Literal["media", "latent"] = "media",
        **request: Any,
    ) -> Generation:
        """Run a request to the end. ``output_type="latent"`` leaves the result undecoded, to be joined by hand.

        ``callback`` is given every event; what it raises stops the run between two steps.
        """
        generation = None
        for event in generate(self.plan(**request), self.ledger, decode=output_type == "media"):
            if callback is not None:
                callback(event)
            generation = event.generation or generation
        assert generation is not None
        return generation

    def default_request(self) -> dict[str, Any]:
        """What the model asks to be asked, as far as it has an effect here; it stands where a request is silent."""
        unused = ("height", "width") if self.keeps_size else ()
        asked = self.ledger.default_request.items()
        wanted = {name: value for name, value in asked if name in self.accepts and name not in unused}
        return wanted | {field: self.guidance(stream) for field, stream in GUIDERS.items() if field in wanted}

    def guidance(self, stream: str) -> MultiModalGuiderParams:
        """Guidance of a stream where a request names none: the usual one with what the model wants otherwise."""
        wanted = self.ledger.default_request.get(f"{stream}_guider_params", {})
        return replace(self.usual_guidance()[stream], **wanted)

    def usual_guidance(self) -> Mapping[str, MultiModalGuiderParams]:
        """Guidance of each stream that suits models of this version."""
        return default_guidance(self.ledger.defaults)

    def shape(self, request: Request, frames: int | None = None, fps: float | None = None) -> VideoPixelShape:
        """The delivered shape of a request, fitted to what the VAE can hold."""
        count = self.predicted_frames(request) if frames is None else frames
        wanted = request.shape(self.default_size, count, fps)
        shape, _ = fitted(wanted, self.ledger.scale_factors, self.size_multiple, request.snap)
        return shape

    def source_shape(self, request: Request, path: str, extra_seconds: float = 0.0) -> VideoPixelShape:
        """The shape of a given clip, ``extra_seconds`` longer, fitted to what the VAE can hold.

        Sides are moved only where the request says ``snap``; frames beyond the last whole latent frame are dropped.
        """
        info = probe_video(path)
        fps = float(info.fps)
        frames = self.ledger.scale_factors.snap_frames(info.frames + round(extra_seconds * fps))
        size = (request.height or info.height, request.width or info.width)
        wanted = VideoPixelShape(1, frames, *size, fps)
        shape, _ = fitted(wanted, self.ledger.scale_factors, self.size_multiple, request.snap)
        return shape

    def predicted_frames(self, request: Request) -> int | None:
        """The number of frames the duration head gives a prompt; None when the request needs no prediction."""
        if not isinstance(request.num_frames, AutoDuration):
            return None
        duration, fps = request.num_frames, request.frame_rate or 24.0
        return self.ledger.predict_frames(request.prompt, fps, duration.min_seconds, duration.max_seconds)

    def finished(self, request: Request, stages: Sequence[StagePlan], **fields: Any) -> Plan:
        """The plan of these stages, with what all plans share."""
        return Plan(
            pipeline=type(self).__name__,
            models=self.ledger.files,
            prompt=request.prompt,
            seed=request.seed,
            stages=tuple(stages),
            negative_prompt=self.negative_prompt(request, stages),
            dtype=self.ledger.precision.name,
            quantization=self.ledger.quantization,
            **fields,
        )

    def negative_prompt(self, request: Request, stages: Sequence[StagePlan]) -> str | None:
        """What guidance pushes away from; None where no stage is guided."""
        if not any(stage.guided for stage in stages):
            return None
        return DEFAULT_NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt

    def first_stage_conditions(self, request: Request, frames: int) -> tuple[Condition, ...]:
        """Images, then the slots of generated keyframes."""
        return (*request.images, *keyframe_slots(request, frames))


class TwoStagePipeline(Pipeline):
    """A task whose first stage works at half the delivered size."""

    default_size = (1024, 1536)
    size_multiple = 2


def as_loras(given: Loras) -> tuple[Lora, ...]:
    return tuple(one if isinstance(one, Lora) else Lora(one) if isinstance(one, str) else Lora(*one) for one in given)
