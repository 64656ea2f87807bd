"""The base of all pipelines: a function from a request to a plan, on a ledger of networks, run by the one engine."""

from __future__ import annotations

import inspect
import logging
import os
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_type_hints

from ltx_core.components.guiders import DEFAULT_NEGATIVE_PROMPT, MultiModalGuiderParams, at_sigma
from ltx_core.errors import ConfigError, nearest_hint
from ltx_core.types import VideoPixelShape
from ltx_pipelines import PIPELINES
from ltx_pipelines.planning.plan import Condition, Lora, ModelFiles, Plan, StagePlan
from ltx_pipelines.planning.schema import Option, UsageError, document, options_of, plain, read_all, with_absolute_files
from ltx_pipelines.planning.stages import (
    TILE_SIDE,
    TILED_SIGMA,
    default_guidance,
    distilled_stage,
    guided_stage,
    keyframe_slots,
    tiled_stages,
    with_block_cache,
    with_sparse_attention,
)
from ltx_pipelines.request import (
    STREAMS,
    AutoDuration,
    FullOrDistilledRequest,
    Guidance,
    Networks,
    Request,
    fit_shape,
    guidance_options,
    request_options,
)

if TYPE_CHECKING:
    from ltx_media.video import VideoInfo
    from ltx_pipelines.running.generation import Generation
    from ltx_pipelines.running.stages import Event
    from ltx_pipelines.utils.model_ledger import ModelLedger

logger = logging.getLogger(__name__)

Loras = Sequence[Lora | str | tuple[str, float]]
DRAWN = -1  # the seed that stands for a random one
TWICE = {  # ways to say one thing
    "length": ("num_frames", "duration", "auto_duration"),
    "number of steps": ("num_inference_steps", "sigmas"),
    "schedule": ("scheduler", "sigmas"),
}
SIZE = frozenset({"height", "width"})
TIME = frozenset({"num_frames", "duration", "frame_rate"})
COMMON = frozenset({"prompt", "seed", "sigmas", "snap", "background"}) | SIZE | TIME
GUIDANCE = {stream: frozenset({f"{stream}_guider_params", *guidance_options(stream)}) for stream in STREAMS}
SOME_NETWORKS = {"spatial_upsampler", "distilled_loras", "temporal_upsampler", "audio_adapter"}  # those in ``uses``
GUIDERS = frozenset({"guider", "apg_eta", "apg_norm_threshold", "apg_momentum"})
APG_OFF: dict[str, Any] = {"apg_eta": 1.0, "apg_norm_threshold": 0.0, "apg_momentum": 0.0}
LARGE = frozenset({"upscale", "tile_size", "upscale_noise", "sparse_attention"})
CAMERA = frozenset({"camera", "camera_depth", "camera_plane", "camera_release"})
STEPS = frozenset({"num_inference_steps", "scheduler", "sampler", "eta", "s_noise", "gamma"})
TEXT_AND_IMAGES = COMMON | LARGE | CAMERA | {"auto_duration", "images", "keyframe_fade", "hdr", "generated_keyframes"}
GUIDED = (
    GUIDANCE["video"] | GUIDANCE["audio"] | GUIDERS | STEPS | {"negative_prompt", "max_batch_size", "first_block_cache"}
)


class Pipeline(ABC):
    """A task. Subclasses say what they accept and how a request becomes a plan."""

    #: Fields of `Request` that have an effect; those that the request of ``make_plan`` adds need not be named.
    accepts: ClassVar[frozenset[str]] = COMMON
    #: Fields of `Networks` and `Output` that have an effect here and not everywhere.
    uses: ClassVar[frozenset[str]] = frozenset({"contact_sheet", "crf", "preview"})
    #: What stands where neither the request nor the model says anything. Sizes it lacks are those of a given clip.
    usual: ClassVar[Mapping[str, Any]] = {"height": 512, "width": 768, "num_frames": 121}
    #: 2 where a twofold enlargement follows the first stage.
    size_multiple: ClassVar[int] = 1
    #: Which transformer of a model that has several, by a piece of its file's name.
    variant: ClassVar[str] = "dev"
    #: Further names of the command.
    aliases: ClassVar[tuple[str, ...]] = ()
    #: What needs no option on a line, in order.
    alone: ClassVar[str] = "prompt"
    #: Of a file whose name is not given.
    suffix: ClassVar[str] = ".mp4"

    def __init__(self, ledger: ModelLedger, loras: Loras = (), distilled_loras: Loras = ()) -> None:
        """A task on the networks of ``ledger``; `from_pretrained` makes one from the name of a model.

        ``loras`` are adapters of every stage, ``distilled_loras`` those of stages that run a full model in few steps: a
        file name, a `Lora`, or several. Raises `ConfigError` for what is neither.
        """
        self.ledger = ledger
        self.loras = as_loras(loras)
        self.distilled_loras = as_loras(distilled_loras)
        self.preset: Mapping[str, Any] = {}  # what stands where a request says nothing, before what the model wants

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for method in (Pipeline.__call__, Pipeline.plan, Pipeline.stream):
            setattr(cls, method.__name__, document(method, cls.fields(), cls.__qualname__))
        inherited: Any = inspect.getattr_static(cls, "from_pretrained")
        opened: Any = document(inspect.unwrap(inherited.__func__), cls.network_fields(), cls.__qualname__)
        setattr(cls, "from_pretrained", classmethod(opened))  # noqa: B010 - mypy refuses the plain assignment

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, loras: Loras = (), **networks: Any) -> Self:
        """A pipeline on a model: a file, a folder, a hub id, or ``"tiny"`` for the bundled model.

        What is not named is looked for beside the model. ``torch_dtype`` is another name of ``dtype``. Raises
        `ConfigError` for a name or value that is none, `CheckpointError` for files that are missing or foreign.
        """
        from ltx_pipelines.running.networks import existing, find_networks, make_ledger

        given: dict[str, Any] = {"model": model, "loras": loras, **networks}
        if "torch_dtype" in given:
            given["dtype"] = given.pop("torch_dtype")
        for name in ("device", "dtype"):
            if given.get(name) is not None:
                given[name] = str(given[name]).removeprefix("torch.")
        present = {name: value for name, value in given.items() if value is not None}
        read = read_all(cls.network_fields(), present, f"{cls.__name__}.from_pretrained", options_of(Networks))
        read = cls.complete(read)
        found = find_networks(read, cls.variant)
        distilled = read.get("distilled_loras", found.distilled_loras)
        return cls(make_ledger(cls.files(found.files), read), existing(read["loras"], "loras"), distilled)

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move to another device or precision, this pipeline itself; networks are loaded anew when they are needed."""
        from ltx_pipelines.running.networks import checked_device

        if dtype is None and str(device).startswith("torch."):
            device, dtype = None, device
        changes = {"device": checked_device(str(device))} if device is not None else {}
        changes |= {"dtype": str(dtype).removeprefix("torch.")} if dtype is not None else {}
        self.ledger = self.ledger.move(**read_all(options_of(Networks), changes, "to"))
        return self

    def enable_4k_mode(self) -> Self:
        """Make clips of 3840 x 2176 where no size is asked for, this pipeline itself: 1920 x 1088, refined in tiles.

        Raises `ConfigError` for a task that cannot enlarge its clip.
        """
        if "upscale" not in self.accepts:
            raise ConfigError(f"{type(self).__name__} cannot enlarge its clip; `ltx upscale` enlarges a finished one")
        self.preset = {"height": 1088, "width": 1920, "upscale": 2}
        return self

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of `Networks`, completed with what follows from other fields."""
        return dict(given)

    @classmethod
    def files(cls, found: ModelFiles) -> ModelFiles:
        """Those of the files of a model that it uses; an audio adapter beside a model is not for every pipeline."""
        return found if "audio_adapter" in cls.uses else replace(found, audio_adapter=None)

    # What it is ---------------------------------------------------------------------------------------------------

    @classmethod
    def command(cls) -> str:
        """The name of its command."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    @classmethod
    def summary(cls) -> str:
        """One line on what it is for."""
        return (inspect.getmodule(cls).__doc__ or cls.__doc__ or "").strip().partition("\n")[0]

    @classmethod
    def request_type(cls) -> type[Request]:
        """The request that ``make_plan`` takes: `Request` or one with fields of its own."""
        hinted = get_type_hints(cls.make_plan).get("request")
        return hinted if isinstance(hinted, type) and issubclass(hinted, Request) else Request

    @classmethod
    def own_fields(cls) -> dict[str, Option]:
        """The fields that its request has besides those of `Request`."""
        shared = request_options()
        return {name: one for name, one in options_of(cls.request_type()).items() if name not in shared}

    @classmethod
    @cache
    def fields(cls) -> dict[str, Option]:
        """Every field of a request that has an effect, by name."""
        found = {name: one for name, one in request_options().items() if name in cls.accepts} | cls.own_fields()
        usual = {
            name: replace(found[name], default=value, shown="") for name, value in cls.usual.items() if name in found
        }
        return found | usual

    @classmethod
    def network_fields(cls) -> dict[str, Option]:
        """Every field of `Networks` that has an effect, by name."""
        fields = options_of(Networks)
        return {name: one for name, one in fields.items() if name not in SOME_NETWORKS or name in cls.uses}

    # What it does -------------------------------------------------------------------------------------------------

    @abstractmethod
    def make_plan(self, request: Any) -> Plan:
        """The plan of a request that is complete but for what pipelines take from the model alone."""

    def plan(self, prompt: str | None = None, *, generator: Any = None, **request: Any) -> Plan:
        """The validated plan of a request, without reading any weight (but those of an automatic length).

        What is left out, or None, is as the model wants it, else as is usual for this pipeline. A `torch.Generator`
        gives the seed: its next number. Raises `ConfigError`, `ConditioningError` or `MediaError` that names the field
        and the nearest valid value.
        """
        return self._plan(self.read(prompt, generator, request))

    def stream(self, prompt: str | None = None, *, generator: Any = None, **request: Any) -> Iterator[Event]:
        """Run a request event by event; the last event carries the `Generation`. Close the iterator to cancel."""
        from ltx_pipelines.running.engine import generate

        return generate(self._announce(self.read(prompt, generator, request)), self.ledger)

    def __call__(
        self,
        prompt: str | None = None,
        *,
        generator: Any = None,
        callback: Callable[[Event], None] | None = None,
        output_type: Literal["media", "latent"] = "media",
        progress: bool | None = None,
        preview: bool = False,
        **request: Any,
    ) -> Generation:
        """Run a request to the end: a result to look at, to `save`, and to take frames and sound from.

        ``generator``, a `torch.Generator`, gives the seed: its next number. ``callback`` is given every event; what it
        raises stops the run between two steps. ``output_type="latent"`` leaves the result undecoded. ``progress`` shows
        bars, by default on a terminal and in a notebook; ``preview`` with them what each step predicts. Raises
        `ConfigError`, `ConditioningError` or `MediaError` before any weight is read.
        """
        from ltx_pipelines.cli.progress import Reporter, is_watched
        from ltx_pipelines.running.engine import generate

        read = self.read(prompt, generator, request)
        decode = Option("output_type", Literal["media", "latent"], "media", "").read(output_type) == "media"
        plan, generation = self._announce(read), None
        reporter = Reporter("bars" if (is_watched() if progress is None else progress) else "quiet")
        if preview:
            reporter.show_previews(self.ledger)
        with reporter.running():
            for event in generate(plan, self.ledger, decode=decode):
                if event.phase != "decode":  # frames are decoded when they are read
                    reporter.event(event)
                if callback is not None:
                    callback(event)
                generation = event.generation or generation
            reporter.finish()
        assert generation is not None
        return replace(generation, request=self.recipe_request(read, plan))

    def _plan(self, read: Mapping[str, Any]) -> Plan:
        from ltx_pipelines.planning.validation import validate_plan

        plan = self.make_plan(self.fill(read))
        validate_plan(plan, self.ledger)
        from ltx_pipelines.planning.notes import notes_of  # takes torch, as what follows a plan does

        return plan.with_(dtype=self.ledger.precision.name, notes=notes_of(plan, self.ledger))

    def _announce(self, read: Mapping[str, Any]) -> Plan:
        """The plan of a request, its notes logged."""
        plan = self._plan(read)
        for note in plan.notes:
            logger.warning(note)
        return plan

    # From what is given to a request ------------------------------------------------------------------------------

    def read(self, prompt: Any, generator: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments, every value of its type and in its range. Raises `ConfigError`."""
        present = {name: value for name, value in {"prompt": prompt, **given}.items() if value is not None}
        if generator is not None:
            present["seed"] = _next_seed(generator, given)
        if "images" in present:
            present["images"] = _with_picture_files(present["images"])
        if hasattr(present.get("camera"), "to_json"):
            present["camera"] = present["camera"].to_json()
        unknown = present.keys() - self.fields().keys()
        read = read_all(self.fields(), present, type(self).__name__, every_field() if unknown else None)
        for what, names in TWICE.items():
            if len(both := [name for name in names if name in read]) > 1:
                raise UsageError(f"the {what} is given twice: {' and '.join(both)}")
        if read.get("seed") == DRAWN:
            read["seed"] = random.SystemRandom().randrange(2**31)
        return read

    def fill(self, read: Mapping[str, Any]) -> Request:
        """The request with what the model, then this pipeline, puts where nothing is given."""
        merged = {**self.usual, **self.wishes(), **self.preset, **read}
        single = {name for stream in STREAMS for name in guidance_options(stream)}
        values = {name: value for name, value in merged.items() if name not in single | GUIDERS}
        for stream in STREAMS if self.accepts & GUIDED else ():
            values[f"{stream}_guider_params"] = self._guidance_of(stream, read)
        values["num_frames"] = self._length(read, merged)
        return self.request_type()(**values)

    def recipe_request(self, read: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        """The request as it is kept in the recipe: with it `ltx rerun` can change something."""
        files = {**dict(plan.models.paths()), "checkpoint_path": plan.models.checkpoint}
        networks: dict[str, Any] = {**files, "loras": self.loras, "distilled_loras": self.distilled_loras}
        options = {name: found for name, found in networks.items() if found and name in self.network_fields()}
        known = {**self.fields(), **self.network_fields()}
        return self.kept_request(with_absolute_files(known, {**options, **read}), plan)

    def kept_request(self, options: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        """What is asked, with all that was drawn or predicted filled in, and the command that is asked for it."""
        options = {**options, "prompt": plan.prompt, "seed": plan.seed, "dtype": plan.dtype}
        if options.pop("auto_duration", None) is not None or isinstance(options.get("num_frames"), AutoDuration):
            options["num_frames"] = plan.stages[0].shown.frames
        name = self.command() if type(self).__name__ in PIPELINES else f"{type(self).__module__}:{type(self).__name__}"
        return {"command": name, "options": plain(options)}

    def _length(self, read: Mapping[str, Any], merged: Mapping[str, Any]) -> int | AutoDuration:
        if (seconds := read.get("duration")) is not None:
            return self.ledger.scale_factors.nearest_frames(round(seconds * merged.get("frame_rate", 24.0)))
        length = read.get("auto_duration", merged["num_frames"])
        if isinstance(length, AutoDuration) and "auto_duration" not in self.accepts:
            raise ConfigError(f"num_frames is automatic, {type(self).__name__} needs a number")
        return length

    def wishes(self) -> dict[str, Any]:
        """The request the model prefers, as far as it has an effect here."""
        taken = self.accepts - (SIZE - self.usual.keys())
        return {name: value for name, value in self.ledger.default_request.items() if name in taken}

    def guidance(self, stream: str) -> Guidance:
        """Guidance of a stream where a request says nothing: the usual one with what the model wants otherwise."""
        return self._guidance_of(stream, {})

    def usual_guidance(self) -> Mapping[str, MultiModalGuiderParams]:
        """Guidance of each stream that suits models of this version."""
        return default_guidance(self.ledger.defaults)

    def _guidance_of(self, stream: str, read: Mapping[str, Any]) -> Guidance:
        """A stream's guidance: the whole where it is given, else the usual one, with the single values given."""
        whole: Guidance | None = read.get(f"{stream}_guider_params")
        values = _single(stream, self.wishes() if whole is None else {}) | _single(stream, read)
        values |= {name: read[name] for name in GUIDERS if name in read}
        base = whole or self.usual_guidance()[stream]
        levels = {level for value in (base, *values.values()) if isinstance(value, Mapping) for level in value}

        def at(level: float) -> MultiModalGuiderParams:
            return replace(_at(base, level), **{name: _at(value, level) for name, value in values.items()})

        guidance: Guidance = {level: at(level) for level in levels} or at(0.0)
        for params in guidance.values() if isinstance(guidance, Mapping) else (guidance,):
            self._check_guidance(stream, params)
        return guidance

    def _check_guidance(self, stream: str, params: MultiModalGuiderParams) -> None:
        blocks = tuple(params.stg_blocks or ())
        layers = int(self.ledger.config.get("transformer", {}).get("num_layers", 1))
        outside = [block for block in blocks if not 0 <= block < layers]
        if outside and blocks != self.ledger.defaults.stg_blocks:
            said = f"{stream} stg_blocks hold {outside[0]}, the model has blocks 0 to {layers - 1}"
            raise ConfigError(f"{said}; nearest valid: {min(max(outside[0], 0), layers - 1)}")
        if params.guider != "apg" and replace(params, guider="apg") != replace(params, guider="apg", **APG_OFF):
            raise UsageError(f"apg_eta, apg_norm_threshold and apg_momentum have no effect with guider {params.guider}")

    # What plans are made with -------------------------------------------------------------------------------------

    def probe(self, path: str) -> VideoInfo:
        """Size, length, rate and sound of a given clip."""
        from ltx_media.files import check_exists

        check_exists(path, "read video")
        from ltx_media.video import probe_video

        return probe_video(path)

    def shape(self, request: Request, frames: int | None = None, fps: float | None = None) -> VideoPixelShape:
        """The delivered shape of a request, fitted to what the VAE can hold."""
        count = self.predicted_frames(request) if frames is None else frames
        return fit_shape(request.shape(count, fps), self.ledger.scale_factors, self.size_multiple, bool(request.snap))

    def source_shapes(
        self, request: Request, clip: VideoInfo, more_frames: int | None = None
    ) -> tuple[VideoPixelShape, VideoPixelShape]:
        """The shape a given clip is worked on at, and the one that is delivered: its own, to the last frame.

        It is continued to what the VAE can hold, and cut back; with ``snap`` off a clip that needs that is refused.
        With ``more_frames`` it grows by so many or the few more that fit. A size in the request stands instead.
        """
        factors, step = self.ledger.scale_factors, self.size_multiple
        own = VideoPixelShape(1, clip.frames + (more_frames or 0), clip.height, clip.width, float(clip.fps))
        asked = {name: side for name in sorted(SIZE) if (side := getattr(request, name)) is not None}
        if request.snap is False:
            factors.check(own._replace(**asked) if more_frames is None else own._replace(**asked, frames=1), step)
        work = factors.covering(own, step)
        even = own._replace(height=max(own.height // 2, 1) * 2, width=max(own.width // 2, 1) * 2)
        if asked:
            even = work = fit_shape(work._replace(**asked), factors, step, bool(request.snap))
        return work, even._replace(frames=own.frames if more_frames is None else work.frames)

    def predicted_frames(self, request: Request) -> int | None:
        """The number of frames the duration head gives a prompt; None when the request needs no prediction."""
        if not isinstance(request.num_frames, AutoDuration):
            return None
        duration, fps = request.num_frames, request.frame_rate or 24.0
        if not self.ledger.holds("duration_head"):
            raise ConfigError("num_frames is automatic, but the model has no duration head; give a number of frames")
        from ltx_core.model.duration_head.model import predict_num_frames

        (contexts,), head = self.ledger.texts.contexts([request.prompt]), self.ledger.network("duration_head")
        return predict_num_frames(
            head, contexts.video, contexts.audio, fps, (duration.min_seconds, duration.max_seconds)
        )

    def finish_plan(self, request: Request, stages: Sequence[StagePlan], **fields: Any) -> Plan:
        """The plan of these stages and of those that enlarge their result, with what all plans share."""
        if "camera" in self.accepts:
            from ltx_pipelines.planning.camera import steer  # numpy

            folder = Path(self.ledger.files.checkpoint).parent
            request, stages = steer(request, stages, folder, self.ledger.version)
        stages = [*stages, *self.enlarging_stages(request, stages[-1])]
        if request.sparse_attention is not None:
            stages = with_sparse_attention(stages, request.sparse_attention)
        if request.first_block_cache is not None:
            stages = with_block_cache(stages, request.first_block_cache)
        return Plan(
            pipeline=type(self).__name__,
            models=self.ledger.files,
            prompt=request.prompt,
            seed=request.seed,
            stages=tuple(stages),
            negative_prompt=self.negative_prompt(request, stages),
            quantization=self.ledger.quantization,
            backend=self.ledger.backend,
            background=request.background,
            hdr=request.hdr,
            **fields,
        )

    def enlarging_stages(self, request: Request, last: StagePlan) -> Iterator[StagePlan]:
        """The stages in tiles that enlarge the result of the last one, as often as is asked."""
        if request.upscale not in (1, 2, 4):
            raise ConfigError(f"upscale is {request.upscale}, expected 1, 2 or 4; nearest valid: 4")
        for name in ("tile_size", "upscale_noise"):
            if request.upscale == 1 and getattr(request, name) is not None:
                raise UsageError(f"{name} has no effect without upscale, expected it left out")
        side, level = request.tile_size or self.tile_side(), request.upscale_noise or TILED_SIGMA
        return tiled_stages(last, request.upscale, self.ledger.scale_factors, side, level)

    def tile_side(self) -> int:
        """The longest side of a tile in pixels: that of the clips the model asks for, where it says so."""
        return max(int(self.ledger.default_request.get(name, TILE_SIDE)) for name in SIZE)

    def prompt_of(self, request: Request, otherwise: str) -> str:
        """The prompt of a request on a clip, else that of the recipe inside the clip, else ``otherwise``."""
        from ltx_media.containers import read_recipe

        if request.prompt or request.video_path is None:
            return request.prompt
        plan = (read_recipe(request.video_path) or {}).get("plan")
        prompt = plan.get("prompt") if isinstance(plan, dict) else None
        return prompt if isinstance(prompt, str) and prompt.strip() else otherwise

    def negative_prompt(self, request: Request, stages: Sequence[StagePlan]) -> str | None:
        """The negative prompt; None where no stage is guided."""
        if not any(stage.guided for stage in stages):
            return None
        return DEFAULT_NEGATIVE_PROMPT if request.negative_prompt is None else request.negative_prompt

    def first_stage_conditions(self, request: Request, frames: int) -> tuple[Condition, ...]:
        """Images, then the slots of generated keyframes."""
        return (*request.images, *keyframe_slots(request, frames))


class TwoStagePipeline(Pipeline):
    """A task whose first stage works at half the delivered size."""

    uses = Pipeline.uses | {"spatial_upsampler", "keep_latents", "first_stage"}
    usual: ClassVar[Mapping[str, Any]] = {**Pipeline.usual, "height": 1024, "width": 1536}
    size_multiple = 2


class FullOrDistilledPipeline(Pipeline):
    """A task of one stage, on a distilled model or with the schedule and guidance of a full one."""

    def fill(self, read: Mapping[str, Any]) -> Request:
        distilled = read.get("distilled")
        if distilled is None:
            distilled = "distilled" in Path(self.ledger.files.checkpoint).name
        if distilled and not self.ledger.is_ltx_video and (useless := [name for name in read if name in GUIDED]):
            raise UsageError(f"{useless[0]} has no effect on a distilled model; leave it out or say --full-model")
        return super().fill({**read, "distilled": distilled})

    def stage_of(
        self,
        request: FullOrDistilledRequest,
        shape: VideoPixelShape,
        images: Sequence[Condition] = (),
        ancestral: bool = False,
    ) -> StagePlan:
        """The stage of a shape, as the request says; ``ancestral`` draws new noise at every distilled step."""
        if request.distilled:
            return distilled_stage(request, shape, images, self.loras, ancestral)
        return guided_stage(request, self.ledger.defaults, shape, images, self.loras)


def as_loras(given: Loras) -> tuple[Lora, ...]:
    return tuple(one if isinstance(one, Lora) else Lora(one) if isinstance(one, str) else Lora(*one) for one in given)


def pipelines() -> dict[str, type[Pipeline]]:
    """Every pipeline by the name of its command."""
    import ltx_pipelines

    found: list[type[Pipeline]] = [getattr(ltx_pipelines, name) for name in PIPELINES]
    return {one.command(): one for one in found}


def find_pipeline(name: str) -> type[Pipeline]:
    """The pipeline of a command, of one of its other names, or of ``module:Class`` in the current folder."""
    if ":" in name:
        return _own_pipeline(*name.split(":", 1))
    spelled = name.replace("_", "-")
    every = {alias: kind for command, kind in pipelines().items() for alias in (command, *kind.aliases)}
    if spelled not in every:
        hint = nearest_hint(spelled, every) or f", expected one of {', '.join(pipelines())}"
        raise UsageError(f"{name!r} is no pipeline{hint}")
    return every[spelled]


def _own_pipeline(module: str, name: str) -> type[Pipeline]:
    sys.path.insert(0, str(Path.cwd()))
    try:
        kind = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UsageError(f"{module}:{name} is no pipeline: {error}") from error
    finally:
        sys.path.pop(0)
    if not (isinstance(kind, type) and issubclass(kind, Pipeline)) or inspect.isabstract(kind):
        raise UsageError(f"{module}:{name} is no pipeline, expected a subclass of Pipeline in {module}")
    return kind


def request_schema(name: str) -> dict[str, Any]:
    """The request of the pipeline whose command or class is called ``name``, as JSON schema.

    Raises `UsageError` for a name of none.
    """
    kinds = pipelines()
    kind = next((one for one in kinds.values() if one.__name__ == name), None) or find_pipeline(name)
    fields = {field: one.json_schema() for field, one in kind.fields().items() if not one.hidden}
    shared = {"title": kind.__name__, "description": kind.summary(), "type": "object"}
    return {**shared, "properties": fields, "additionalProperties": False}


@cache
def every_field() -> dict[str, Option]:
    """The fields of every pipeline's request."""
    return request_options() | {name: one for kind in pipelines().values() for name, one in kind.own_fields().items()}


@cache
def owners() -> dict[str, str]:
    """The pipeline each field belongs to that not all requests have, by command."""
    found: dict[str, str] = {}
    for command, kind in pipelines().items():
        for name in kind.own_fields():
            found.setdefault(name, command)
    return found


def _next_seed(generator: Any, given: Mapping[str, Any]) -> int:
    import torch

    if given.get("seed") is not None:
        raise UsageError("the seed is given twice: seed and generator")
    if not isinstance(generator, torch.Generator):
        raise ConfigError(f"generator is {type(generator).__name__}, expected a torch.Generator")
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def _with_picture_files(images: Any) -> Any:
    """The same with every picture (PIL, tensor, array) replaced by the name of a file that holds it."""
    if isinstance(images, str | bytes | os.PathLike | int | float) or images is None or is_dataclass(images):
        return images
    if isinstance(images, Mapping):
        return {name: _with_picture_files(value) for name, value in images.items()}
    if isinstance(images, Sequence):
        return [_with_picture_files(value) for value in images]
    from ltx_media.images import picture_file  # takes torch

    return str(picture_file(images))


def _at(value: Any, level: float) -> Any:
    """A value at a noise level, where it may depend on that."""
    return at_sigma(value, level) if isinstance(value, Mapping) else value


def _single(stream: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The single values of a stream's guidance, by the names of `MultiModalGuiderParams`."""
    names = guidance_options(stream)
    return {name.removeprefix(f"{stream}_"): value for name, value in values.items() if name in names}
