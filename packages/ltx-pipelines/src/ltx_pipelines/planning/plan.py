"""A task as a value: everything that decides a clip, frozen, printable, stored in the file it makes, run by one engine.

A plan is a list of stages. A stage denoises one or two streams (video, audio) at one size along one list of sigmas;
a stream starts from noise, from a source clip or from the stage before, and carries its conditions and its guidance.
Paths are strings, each a `File`, so that a plan is plain JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal

from ltx_core.components.guiders import MultiModalGuiderParams, VelocityGuidance, at_sigma
from ltx_core.components.strength import Curve, strength_around
from ltx_core.components.windows import pixel_frames
from ltx_core.errors import ConditioningError, ConfigError
from ltx_core.precision import DtypeName
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape
from ltx_pipelines.planning.schema import File

PLAN_VERSION = 1
BackendName = Literal["torch", "mlx"]
KEPT = (0.0, 0.0)  # the empty span
MODALITIES = ("video", "audio")
HDRName = Literal["SRGB_LINEAR", "ACESCG", "ACESCCT"]
TransferName = Literal["logc3", "acescct"]
SamplerName = Literal["euler", "euler_ancestral", "euler_cfg_pp", "heun", "res_2s", "gradient_estimating"]
StreamStart = Literal["noise", "source", "previous"]
Tiles = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class ModelFiles:
    """Files that the networks come from. A single-file checkpoint fills every slot but ``text_encoder``.

    ``checkpoint`` is the transformer's file and the default of the other parts: ``text_encoder`` (a Gemma folder or
    file), ``text_projection`` (what connects it, where the checkpoint lacks that), ``video_vae``, ``audio_vae``,
    ``duration_head``, ``audio_adapter`` (an audio stream for LTX-Video), ``spatial_upsampler``, ``temporal_upsampler``.
    """

    checkpoint: File  # the transformer's file; the default of every other slot
    text_encoder: File | None = None  # Gemma folder or packed file
    text_projection: File | None = None  # projections or connectors that the transformer's file lacks
    video_vae: File | None = None
    audio_vae: File | None = None
    duration_head: File | None = None
    audio_adapter: File | None = None  # what gives an LTX-Video transformer an audio stream
    spatial_upsampler: File | None = None
    temporal_upsampler: File | None = None

    def paths(self) -> Iterator[tuple[str, str]]:
        """(slot, path) of every slot that is filled."""
        for slot in fields(self):
            if path := getattr(self, slot.name):
                yield slot.name, path


@dataclass(frozen=True)
class Lora:
    """The file ``path`` of an adapter for the transformer.

    ``strength`` multiplies its change of the weights: 1 is what was trained, negative is allowed.
    """

    path: File
    strength: float = 1.0


@dataclass(frozen=True)
class ImageCondition:
    """A still at pixel frame ``frame_idx``, held with ``strength`` (0 to 1).

    ``crf`` (0 to 51) compresses it first; None follows the model, 0 keeps the pixels as they are. It stands in place
    at frame 0, as extra tokens elsewhere; ``as_keyframe`` makes it extra tokens everywhere. ``release`` is how its
    strength falls with sigma, to 0 at the last evaluated one; it also stands every eighth frame within ``reach`` frames
    to both sides, with a strength that is held or falls along ``curve``. With LTX-Video ``path`` may be a clip that is
    shown from that frame on.
    """

    path: File
    frame_idx: int = 0
    strength: float = 1.0
    crf: int | None = None
    release: Curve = "hold"
    reach: int = 0
    curve: Curve = "hold"
    as_keyframe: bool = False
    kind: Literal["image"] = "image"

    def check_place(self, frames: int) -> None:
        """Refuse a frame outside a clip of so many. Raises `ConditioningError`."""
        last, nearest = frames - 1, min(max(self.frame_idx, 0), frames - 1)
        if self.frame_idx != nearest:
            said = f"image frame_idx is {self.frame_idx}, expected 0 to {last}"
            raise ConditioningError(f"{said}; nearest valid: {nearest}")

    def places(self, frames: int, step: int) -> dict[int, float]:
        """Its strength by pixel frame in a clip of so many, its own frame first; none where it is 0."""
        around = enumerate(strength_around(self.strength, self.reach // step, self.curve))
        found = {self.frame_idx + sign * step * d: strength for d, strength in around for sign in (1, -1)}
        return {frame: strength for frame, strength in found.items() if 0 <= frame < frames and strength > 0}


@dataclass(frozen=True)
class ReferenceCondition:
    """A clip to follow, as in-context tokens. The factors are those its LoRA was trained with.

    Without ``path`` it is the video of the stage before, as that stage left it.
    """

    path: File | None
    strength: float = 1.0
    downscale_factor: int = 1
    temporal_scale_factor: int = 1
    attention_strength: float = 1.0
    attention_mask: File | None = None  # grey video, white = attend
    kind: Literal["reference"] = "reference"


@dataclass(frozen=True)
class RegionCondition:
    """Only tokens that overlap ``[start, end)`` seconds are made anew; the others stay as their source."""

    start: float
    end: float
    kind: Literal["region"] = "region"


@dataclass(frozen=True)
class AudioReferenceCondition:
    """A sound whose voice is kept, as tokens before time 0. Without ``path`` it is the sound of the stage before."""

    path: File | None
    strength: float = 1.0
    kind: Literal["audio_reference"] = "audio_reference"


@dataclass(frozen=True)
class KeyframeSlots:
    """Keyframes at these pixel frames that the model makes itself.

    ``seeded`` ones start from the keyframe of the stage before at that frame, else from its nearest latent frame.
    """

    pixel_frame_indices: tuple[int, ...]
    seeded: bool = False
    kind: Literal["slots"] = "slots"


@dataclass(frozen=True)
class CarriedKeyframes:
    """Keyframes that the stage before made, shown at these pixel frames."""

    pixel_frame_indices: tuple[int, ...]
    strength: float = 1.0
    kind: Literal["carried"] = "carried"


@dataclass(frozen=True)
class CameraCondition:
    """A still seen by a camera on a path, held where the camera sees the still; the rest is made.

    ``camera_path`` is one in JSON. A camera that changes its place needs the depth of the still (a file) or the
    distance of a facing ``plane``. ``release`` is how the hold falls with sigma.
    """

    image: File
    camera_path: str
    depth: File | None = None
    plane: float | None = None
    release: Curve = "hold"
    kind: Literal["camera"] = "camera"


Condition = (
    ImageCondition
    | ReferenceCondition
    | RegionCondition
    | AudioReferenceCondition
    | KeyframeSlots
    | CarriedKeyframes
    | CameraCondition
)


@dataclass(frozen=True)
class Source:
    """A clip or sound that a stream starts from: ``duration`` seconds of it from ``start``, placed at ``offset``.

    Latents the source does not cover are empty; a region condition says what is made of them.
    """

    path: File
    start: float = 0.0
    duration: float | None = None
    offset: float = 0.0  # seconds into the new clip


@dataclass(frozen=True)
class StreamPlan:
    """One modality of one stage."""

    start: StreamStart = "noise"
    noise_scale: float = 1.0  # share of noise mixed into what the stream starts from
    frozen: bool = False  # only attended to, never changed
    conditions: tuple[Condition, ...] = ()
    fade: float = 0.0  # how firmly it begins as a fade from picture to picture; let go of while sigma falls
    guidance: MultiModalGuiderParams | None = None  # None: one plain pass
    # Instead of it, by noise level: each up to its sigma from the one below, the last also above.
    guidance_by_sigma: tuple[tuple[float, MultiModalGuiderParams], ...] = ()

    @property
    def guided(self) -> bool:
        return self.guidance is not None or bool(self.guidance_by_sigma)

    def guidance_at(self, sigma: float) -> MultiModalGuiderParams | None:
        """The guidance of a step that begins at a noise level."""
        return at_sigma(dict(self.guidance_by_sigma), sigma) if self.guidance_by_sigma else self.guidance


@dataclass(frozen=True)
class SamplerPlan:
    """The sampler of a stage. ``seed`` is that of the sampler's own noise, where it adds any."""

    kind: SamplerName | Literal["token_levels"] = "euler"
    params: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class SparseAttention:
    """Self-attention of the picture by blocks of tokens, each of which sees those that touch it and every so-many-th.

    The first ``steps`` steps attend to all, and so do ``layers`` blocks of the transformer at either end.
    """

    stride: int
    block: int = 128  # tokens, a power of two
    steps: int = 1
    layers: int = 1

    def __post_init__(self) -> None:
        if self.block < 8 or self.block & (self.block - 1):
            raise ConfigError(f"sparse_attention block is {self.block}, expected a power of two, at least 8")
        for name, least in {"stride": 1, "steps": 0, "layers": 0}.items():
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"sparse_attention {name} is {value}, expected at least {least}")


@dataclass(frozen=True)
class BlockCache:
    """Steps run the first block of the transformer alone where its change differs by less than ``threshold``.

    The difference is relative, to the last step that ran all blocks; the first ``steps`` calls run them all.
    """

    threshold: float
    steps: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"first_block_cache threshold is {self.threshold}, expected above 0, at most 1")
        if self.steps < 1:
            raise ConfigError(f"first_block_cache steps is {self.steps}, expected at least 1")


@dataclass(frozen=True)
class Window:
    """Pixel frames ``first`` to ``last`` of a stage; the window before gives its first ``dropped`` latent frames.

    In a long clip it goes on from ``shared`` latent frames of the window before, and from its audio tokens: ``tokens``
    is the half-open interval of its own in the whole clip.
    """

    first: int
    last: int
    dropped: int = 0
    shared: int = 0
    tokens: tuple[int, int] | None = None

    @property
    def first_new(self) -> int:
        """The first pixel frame that no earlier window makes."""
        return self.first + pixel_frames(self.shared) if self.shared else self.first


@dataclass(frozen=True)
class StagePlan:
    """One run of the transformer from the first sigma to the last; with ``windows``, one for each of them.

    With one sigma there is no step: the result is what the streams start from.
    """

    shape: VideoPixelShape
    sigmas: tuple[float, ...]
    streams: Mapping[str, StreamPlan]
    loras: tuple[Lora, ...] = ()
    sampler: SamplerPlan = SamplerPlan()
    max_batch_size: int = 1  # guidance passes per transformer call
    windows: tuple[Window, ...] = ()  # joined in this order
    window: Window | None = None  # of a longer clip, which this run of the transformer makes
    delivered: VideoPixelShape | None = None  # where it is shorter or smaller than ``shape``, or of another rate
    velocity_guidance: tuple[VelocityGuidance, ...] = ()  # of each step of an LTX-Video model
    # Tiles along frames, height and width, each with the latent cells that neighbours share; a frozen sound.
    tiles: Tiles | None = None
    apart: bool = False  # each of these is made to its end alone, with noise and times of its own, and joined then
    decoded_cells: int | None = None  # latent cells of the picture that are decoded at once; None: all that fit
    sparse_attention: SparseAttention | None = None
    first_block_cache: BlockCache | None = None
    match_statistics: bool = False  # give an enlarged latent the spread it had per channel before it was enlarged

    @property
    def shown(self) -> VideoPixelShape:
        """Size of the clip of this stage."""
        return self.delivered or self.shape

    @property
    def every(self) -> int:
        """Step between the frames that are delivered: 2 leaves out every second one."""
        return max(round(self.shape.fps / self.shown.fps), 1)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def keyframe_conditions(self) -> list[KeyframeSlots | CarriedKeyframes]:
        """The conditions that make keyframes or show those of the stage before."""
        conditions = self.streams["video"].conditions if "video" in self.streams else ()
        return [condition for condition in conditions if isinstance(condition, KeyframeSlots | CarriedKeyframes)]

    @property
    def keyframe_frames(self) -> list[int]:
        """The pixel frames of the keyframes a stage carries on: those it makes and those it is shown."""
        return sorted({frame for condition in self.keyframe_conditions for frame in condition.pixel_frame_indices})

    @property
    def guided(self) -> bool:
        """Whether it needs a negative prompt."""
        if self.velocity_guidance:
            return any(guidance.uses_negative for guidance in self.velocity_guidance)
        return any(stream.guided for stream in self.streams.values())

    def guidance_at(self, sigma: float) -> list[MultiModalGuiderParams]:
        """The guidance of every guided stream at a noise level."""
        found = (stream.guidance_at(sigma) for stream in self.streams.values())
        return [params for params in found if params is not None]

    def passes_at(self, sigma: float) -> int:
        """Transformer passes of a full step: conditional, unconditional, perturbed, modality-isolated."""
        if self.velocity_guidance:
            return self.velocity_guidance[self.sigmas.index(sigma)].predictions
        guidance = self.guidance_at(sigma)
        wanted = (
            any(g.cfg_scale != 1 for g in guidance) or self.sampler.kind == "euler_cfg_pp",
            any(g.stg_scale != 0 for g in guidance),
            any(g.modality_scale != 1 for g in guidance) and len(self.streams) > 1,
        )
        return 1 + sum(wanted)

    def passes(self) -> int:
        """The most passes that a step needs."""
        return max((self.passes_at(sigma) for sigma in self.sigmas[:-1]), default=0)


@dataclass(frozen=True)
class LTXVideoSettings:
    """Settings of an LTX-Video clip alone: the size media are fitted to, and the decoding of its latent."""

    asked: VideoPixelShape  # of any size; the stages have the next ones that the model can hold
    decode_timestep: float = 0.0  # the noise level a timestep-conditioned decoder is told
    decode_noise_scale: float | None = None  # share of noise mixed into the latent for it; None: as the timestep
    tone_map: float = 0.0  # compression of large values, in [0, 1]


@dataclass(frozen=True)
class Scene:
    """Content from pixel frame ``start`` of a long clip on; ``camera`` says how it moves."""

    prompt: str
    start: int = 0
    camera: str | None = None


@dataclass(frozen=True)
class LongClip:
    """Windows of a stage that become one clip. The first latent frame of a window is always held.

    Picture and sound are held alike: where one was held and the other free, knocks were seen and heard at two times.
    """

    scenes: tuple[Scene, ...]
    overlap_strength: float = 1.0  # of the oldest latent frame that two windows share
    overlap_curve: Curve = "smoothstep"  # how that falls towards the new part; below 1 it also falls with sigma
    anchor: Literal["first"] | File | None = None  # before time 0, seen by every window: a picture, or the first frame
    adain: float = 0.0  # share by which a window's statistics are moved to the first one's


@dataclass(frozen=True)
class Plan:
    """A whole task: the ``prompt`` of a ``pipeline`` on ``models``, as ``stages`` that follow each other.

    Everything in it is a plain value, so it can be printed, stored in the clip and run again from its ``seed``.
    ``sources`` are the clips it begins with. ``audio`` says whose sound is delivered: of the last stage, of the first,
    or the source's own. ``notes`` say what was changed of what was asked, ``version`` is that of the form.
    """

    pipeline: str
    models: ModelFiles
    prompt: str
    seed: int
    stages: tuple[StagePlan, ...]
    negative_prompt: str | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    audio: Literal["last", "first", "source", "none"] = "last"
    ltx_video: LTXVideoSettings | None = None  # of a clip that an LTX-Video 0.9.x model makes
    long: LongClip | None = None  # of a clip made in windows, one after another
    dtype: DtypeName = "auto"  # what networks compute in; plans that pipelines make never say auto
    quantization: str | None = None
    backend: BackendName = "torch"  # what builds and runs the networks
    background: str = "black"  # behind transparent pictures
    hdr: HDRName | None = None  # of an HDR clip: the colour space of EXR files, those given and those written
    transfer: TransferName | None = None  # of an HDR clip made of an SDR one: the curve of the codes that are decoded
    text_embeddings: File | None = None  # encoded text, in place of the prompt's
    notes: tuple[str, ...] = ()  # what was changed of what was given, a line each
    version: int = PLAN_VERSION

    @property
    def shape(self) -> VideoPixelShape:
        """Size of the delivered clip."""
        return self.stages[-1].shown

    @property
    def has_video(self) -> bool:
        return "video" in self.stages[-1].streams

    @property
    def decoded(self) -> tuple[str, ...]:
        """The streams whose latents are decoded: the last picture, and the sound that ``audio`` names.

        One that is kept as a whole is its source's own.
        """
        last = self.stages[-1].streams
        sounding = {"first": self.stages[0].streams, "last": last}.get(self.audio, {})
        present = [name for name, streams in {"video": last, "audio": sounding}.items() if name in streams]
        return tuple(name for name in present if self.new_span(name) != KEPT)

    def new_span(self, name: str) -> tuple[float, float] | None:
        """The seconds of a delivered stream that are made anew, where the rest is its source's own.

        `KEPT` where all of it is the source's; None where nothing is.
        """
        stream = self.stages[-1].streams.get(name)
        if stream is None or stream.start != "source":
            return None
        if stream.frozen:
            return KEPT
        regions = [condition for condition in stream.conditions if isinstance(condition, RegionCondition)]
        return (regions[0].start, regions[0].end) if regions else None

    def decoded_shape(self, factors: SpatioTemporalScaleFactors) -> VideoPixelShape:
        """The picture that is decoded: the last stage's, no longer than what is delivered needs."""
        stage = self.stages[-1]
        needed = (stage.shown.frames - 1) * stage.every + 1
        return stage.shape._replace(frames=min(factors.cover_frames(needed), stage.shape.frames))

    @property
    def prompts(self) -> list[str]:
        """Every text that is encoded, the negative one last."""
        if self.text_embeddings is not None:
            return []
        positive = [self.prompt] if self.long is None else [scene.prompt for scene in self.long.scenes]
        return list(dict.fromkeys(positive)) + ([self.negative_prompt] if self.negative_prompt is not None else [])

    def conditions(self) -> Iterator[tuple[StagePlan, Condition]]:
        """Every condition with its stage."""
        for stage in self.stages:
            for stream in stage.streams.values():
                for condition in stream.conditions:
                    yield stage, condition

    def growth(self, index: int) -> tuple[bool, int]:
        """Whether a stage's picture is larger than that of the stage before, and how many times its frames."""
        if index == 0 or "video" not in self.stages[index].streams:
            return False, 1
        before, now = self.stages[index - 1].shape, self.stages[index].shape
        larger = (before.height, before.width) != (now.height, now.width)
        return larger, (now.frames - 1) // max(before.frames - 1, 1) if now.frames != before.frames else 1

    def encoders(self) -> list[str]:
        """The encoders it needs: of streams that start from a source, and of conditions that come from files."""
        wanted = {name for stage in self.stages for name, stream in stage.streams.items() if stream.start == "source"}
        if self.long is not None and (len(self.stages[-1].windows) > 1 or self.long.anchor not in (None, "first")):
            wanted.add("video")
        for _, condition in self.conditions():
            if isinstance(condition, CameraCondition) or (
                isinstance(condition, ImageCondition | ReferenceCondition) and condition.path is not None
            ):
                wanted.add("video")
            elif isinstance(condition, AudioReferenceCondition) and condition.path is not None:
                wanted.add("audio")
        return [f"{name}_encoder" for name in MODALITIES if name in wanted]

    def to_json(self) -> str:
        """The plan as text that `from_json` reads back to an equal plan."""
        return str(_adapter().dump_json(self), "utf-8")

    def with_(self, **changes: Any) -> Plan:
        """A copy with fields replaced."""
        return replace(self, **changes)


@cache
def _adapter() -> Any:
    """The converter of plans into JSON and back."""
    from pydantic import TypeAdapter

    return TypeAdapter(Plan)


def plan_from_json(text: str | bytes) -> Plan:
    """The plan that ``text`` holds as JSON. Raises `ConfigError` that names the first field that does not fit."""
    from pydantic import ValidationError

    try:
        plan: Plan = _adapter().validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "plan"
        raise ConfigError(f"plan: {place}: {first['msg']}") from error
    if plan.version > PLAN_VERSION:
        raise ConfigError(f"plan: version is {plan.version}, this program reads up to {PLAN_VERSION}")
    for shape in (shape for stage in plan.stages for shape in (stage.shape, stage.shown)):
        if min(shape[:4]) < 1 or not 0 < shape.fps < math.inf:
            raise ConfigError(f"plan: a stage is {shape}, expected sizes of at least 1 and a frame rate above 0")
    return plan
