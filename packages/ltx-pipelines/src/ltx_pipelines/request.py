"""Everything that can be asked, once: the request of a clip, the networks that make it, and what is written of it.

A pipeline takes some of `Request` (its ``accepts``) and refuses the rest. A pipeline with a field of its own declares
it in a subclass of `Request` in its own file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ltx_core.components.guiders import GuiderName, MultiModalGuiderParams
from ltx_core.components.strength import Curve
from ltx_core.errors import ConfigError
from ltx_core.loader.metadata import DEFAULTS_FROM
from ltx_core.precision import DtypeName
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape, nearest_multiple
from ltx_pipelines.planning.plan import (
    BackendName,
    BlockCache,
    HDRName,
    ImageCondition,
    Lora,
    SamplerName,
    SparseAttention,
)
from ltx_pipelines.planning.schema import File, Option, option, options_of

Policy = Literal["auto", "resident", "sequential", "streamed"]
SchedulerName = Literal["ltx2", "linear_quadratic", "beta"]
Guidance = Mapping[float, MultiModalGuiderParams] | MultiModalGuiderParams  # by noise level, up to each
Scale = Mapping[float, float] | float
STREAMS = {"video": "a2v", "audio": "v2a"}  # and what brings the other stream into it


@dataclass(frozen=True)
class AutoDuration:
    """Let the model choose the length from the prompt, between ``min_seconds`` and ``max_seconds``.

    Raises `ConfigError` unless 0 < min <= max.
    """

    min_seconds: float = 1.0
    max_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds <= self.max_seconds:
            span = f"{self.min_seconds} to {self.max_seconds} seconds"
            raise ConfigError(f"auto duration is {span}, expected 0 < min <= max")


@dataclass(frozen=True)
class Reference:
    """The file ``path`` of a clip to follow, and its ``strength``: how closely, from 0 to 1."""

    path: File
    strength: float = 1.0


def by_version(field: str) -> str:
    """The defaults of the model versions in words: the oldest, and each change since."""
    found: list[tuple[str, Any]] = []
    for version, defaults in reversed(DEFAULTS_FROM):
        value = getattr(defaults, field)
        if not found or found[-1][1] != value:
            found.append((f", from {'.'.join(map(str, version))} on " if version else "", value))
    return "".join(f"{since}{str(value).strip('(),')}" for since, value in found)


MEMORY = "Memory and speed"
clip = partial(option, group="Request")
size = partial(option, group="Size and time")
condition = partial(option, group="Conditions")
sampling = partial(option, group="Sampling")
network = partial(option, group="Model")
memory = partial(option, group=MEMORY)
result = partial(option, group="Output")


@dataclass(frozen=True)
class Request:
    """One clip. What is left out, or None, is the model's or the pipeline's default."""

    prompt: str = clip("", "What to make.", "--prompt", "-p")
    negative_prompt: str | None = clip(
        None, "What guidance pushes away from.", "--negative-prompt", "--negative", shown="a list of defects"
    )
    seed: int = clip(10, "Seed of the noise; -1 draws one.", "--seed", "-s")
    height: int | None = size(
        None, "Height of the clip.", "--height", "-H", unit="pixels", least=1, shown="by pipeline"
    )
    width: int | None = size(None, "Width of the clip.", "--width", "-W", unit="pixels", least=1, shown="by pipeline")
    num_frames: int | AutoDuration | None = size(
        None, "Length of the clip, 8k+1.", "--num-frames", "--frames", "-f", unit="frames", least=1, shown="121"
    )
    duration: float | None = size(None, "Length of the clip, instead of its frames.", unit="seconds", positive=True)
    auto_duration: AutoDuration | None = size(
        None, "Let the model choose the length, within these limits.", unit="seconds"
    )
    frame_rate: float | None = size(
        None, "Pictures a second.", "--frame-rate", "--fps", unit="frames/s", positive=True, shown="24"
    )
    snap: bool | None = size(
        None,
        "Move what is asked to the nearest valid size and length, or refuse; a given clip keeps its own.",
        "--snap/--no-snap",
        shown="on a line on, elsewhere only given clips are taken as they are",
    )
    upscale: int = size(
        1, "Times by which the finished clip is enlarged and refined in tiles: 1, 2 or 4.", least=1, most=4
    )
    tile_size: int | None = size(
        None, "Longest side of a tile of that.", unit="pixels", least=64, shown="1408, or what the model asks for"
    )
    upscale_noise: float | None = size(
        None, "Noise level it is refined from: low keeps it, high draws it anew.", least=0.01, most=1, shown="0.421875"
    )
    num_inference_steps: int | None = sampling(
        None,
        "Steps of the guided stage.",
        "--num-inference-steps",
        "--steps",
        least=1,
        most=1000,
        shown=by_version("num_inference_steps"),
    )
    sigmas: tuple[float, ...] | None = sampling(
        None, "Noise levels of the first stage, falling, instead of a schedule.", least=0, most=1, metavar="SIGMA..."
    )
    scheduler: SchedulerName | None = sampling(None, "Where the noise levels of the guided stage lie.", shown="ltx2")
    sampler: SamplerName | None = sampling(None, "How a step of the guided stage is made.", shown="euler")
    eta: float | None = sampling(
        None, "Share of fresh noise in a step of euler_ancestral, euler_cfg_pp (default 1) or res_2s (0.5).", least=0
    )
    s_noise: float | None = sampling(
        None, "Scale of the fresh noise of euler_ancestral and euler_cfg_pp.", least=0, shown="1"
    )
    gamma: float | None = sampling(
        None, "How far gradient_estimating goes beyond the last step.", "--gamma", "--ge-gamma", shown="2"
    )
    guider: GuiderName | None = sampling(
        None, "How guidance uses the negative prompt: plain, scaled to fit, or projected.", shown="cfg"
    )
    apg_eta: float | None = sampling(None, "Of apg: share of the guidance along the prediction.", shown="1")
    apg_norm_threshold: float | None = sampling(
        None, "Of apg: largest norm of the guidance; 0 is no limit.", least=0, shown="0"
    )
    apg_momentum: float | None = sampling(None, "Of apg: share of the last step's guidance that goes on.", shown="0")
    max_batch_size: int = sampling(1, "Guidance passes per transformer call.", least=1, most=4)
    sparse_attention: SparseAttention | None = sampling(
        None,
        "Leave distant pairs out of the picture's self-attention: a block of tokens sees those that touch it and every "
        "STRIDE-th. The first STEPS and the outer LAYERS of the transformer see all, as do stages in tiles.",
        shown="off; of the others 128 1 1",
    )
    first_block_cache: BlockCache | None = sampling(
        None,
        "Run the first block of the transformer alone, and reuse what the others did at an earlier step, where that "
        "block's change differs by less than this share, 0.1 or so. The first STEPS run all blocks, as do stages that "
        "are not guided or in tiles.",
        shown="off; steps 6",
    )
    video_guider_params: Guidance | None = sampling(
        None, "The whole guidance of the picture, also by noise level, instead of the single values.", hidden=True
    )
    audio_guider_params: Guidance | None = sampling(
        None, "The whole guidance of the sound, also by noise level, instead of the single values.", hidden=True
    )
    images: tuple[ImageCondition, ...] = condition(
        (),
        "Still at a frame (0 the first), 0 to 1 how strongly it holds; CRF 0 keeps its pixels. The strength may fall "
        "with sigma (release) and over the frames that it reaches to both sides (curve).",
        "--image",
        "-i",
    )
    keyframe_fade: float = condition(
        0.0,
        "How firmly frames between pictures begin as a fade from one to the next; it is let go of as sigma falls.",
        least=0,
        most=1,
    )
    camera: str | None = condition(
        None,
        "Camera moves, such as 'pan left 15, zoom in 1.2, 0-2s', or a path in a JSON file; from the first picture.",
        metavar="MOVES|FILE",
    )
    camera_depth: File | None = condition(None, "Depth of that picture for moves that change place: .npy.")
    camera_plane: float | None = condition(
        None, "Instead of it: how far a facing wall is, in the units of the moves.", positive=True
    )
    camera_release: Curve = condition("hold", "How the hold of what the camera sees falls with the noise level.")
    generated_keyframes: int | tuple[int, ...] = condition(
        0, "Evenly spaced keyframes the model makes itself, or their frames.", "--num-generated-keyframes", least=0
    )
    video_path: File | None = condition(None, "Source clip.", "--video-path", "--video")
    hdr: HDRName | None = condition(
        None, "Make an HDR clip; this is the colour space of EXR files, those given and those written."
    )
    background: str = condition("black", "Behind transparent pictures: a name, or #rrggbb.", metavar="COLOR")

    def shape(self, frames: int | None = None, fps: float | None = None) -> VideoPixelShape:
        """The delivered shape."""
        count = frames or self.num_frames
        assert isinstance(count, int) and self.height is not None and self.width is not None
        return VideoPixelShape(1, count, self.height, self.width, float(fps or self.frame_rate or 24.0))


@dataclass(frozen=True)
class FullOrDistilledRequest(Request):
    """A request to a full or a distilled model, which are asked in different ways."""

    distilled: bool | None = condition(
        None,
        "The distilled eight steps, or schedule and guidance of a full model.",
        "--distilled-model/--full-model",
        shown="by file name",
    )


@dataclass(frozen=True)
class Networks:
    """Networks that make a clip, their device and their place in memory."""

    model: str | None = network(
        None,
        "File, folder, hub id (owner/name) or 'tiny'.",
        "--model",
        "-m",
        metavar="MODEL",
        shown="$LTX_MODEL, else tiny",
    )
    checkpoint_path: File | None = network(
        None, "Single-file model.", "--checkpoint-path", "--distilled-checkpoint-path"
    )
    gemma_root: File | None = network(None, "Gemma folder, where it is not beside the model.", metavar="FOLDER")
    transformer: File | None = network(None, "Split model: transformer and connectors.", "--transformer-path")
    text_encoder: File | None = network(None, "Split model: text encoder in one file.", "--text-encoder-path")
    text_projection: File | None = network(
        None, "Text projections and connectors, where the transformer's file has none.", "--text-projection-path"
    )
    video_vae: File | None = network(None, "Video VAE, instead of the model's own.", "--video-vae-path")
    audio_vae: File | None = network(None, "Audio VAE and vocoder, instead of the model's own.", "--audio-vae-path")
    duration_head: File | None = network(None, "Duration head, where the model has none.", "--duration-head-path")
    audio_adapter: File | None = network(None, "What gives an LTX-Video model sound, where it is not beside the model.")
    spatial_upsampler: File | None = network(
        None, "Latent upscaler x2, where it is not beside the model.", "--spatial-upsampler-path"
    )
    temporal_upsampler: File | None = network(None, "Latent upsampler in time.", "--temporal-upsampler-path")
    loras: tuple[Lora, ...] = network((), "Adapter for the transformer.", "--lora")
    distilled_loras: tuple[Lora, ...] = network(
        (), "Adapter of the second stage, where it is not beside the model.", "--distilled-lora"
    )
    lora_precision: Literal["float32", "bfloat16"] | None = network(
        None, "What adapters are added to weights in; bfloat16 as in the official package.", shown="float32"
    )
    policy: Policy | None = memory(None, "Which weights stay.", shown="auto")
    offload: Literal["none", "cpu", "disk"] | None = memory(
        None, "Other names for the policies resident, streamed, sequential."
    )
    backend: BackendName | None = memory(
        None, "What networks are computed with.", shown="mlx on Apple silicon where it is installed, else torch"
    )
    embedding_cache: str | None = memory(None, "Folder that keeps encoded prompts.", metavar="FOLDER")
    quantization: str | None = memory(None, "Keep the transformer's weights in a smaller type.", metavar="NAME")
    compile_blocks: bool = memory(False, "Fuse what a block computes; the first step waits for it.", "--compile")
    device: str | None = memory(None, "cuda, cuda:1, mps, cpu.", metavar="DEVICE", shown="the best there is")
    dtype: DtypeName | None = memory(
        None, "What networks compute in; auto is what the device computes fast.", shown="auto"
    )


@dataclass(frozen=True)
class Output:
    """A command's treatment of the prompt before, and of the clip afterwards."""

    output: str | None = clip(
        None,
        "File to write: .mp4, .mov, .mkv, .webm, .gif, .webp, .wav, .flac, .mp3, or a folder for PNG files.",
        "--output-path",
        "--output",
        "-o",
        metavar="FILE",
        shown="from prompt and seed",
    )
    enhance_prompt: bool = clip(False, "Let a language model write the prompt out first.")
    prompt_enhancer: File | None = clip(
        None, "Gemma folder for that.", "--prompt-enhancer-gemma-root", metavar="FOLDER", shown="the text encoder"
    )
    contact_sheet: str | None = result(None, "Also write frames over a spectrogram to this PNG.", metavar="FILE")
    crf: float | None = result(None, "Quality of an MP4; 0 keeps every pixel.", least=0, most=51, shown="19")
    count: int = clip(
        1, "Make so many, each with the next seed, and one sheet of all.", "--count", "-n", least=1, most=100
    )
    overwrite: bool = result(False, "Replace files that are there already.")
    absolute_paths: bool = result(False, "Name files in the recipe with their folders, which are left out otherwise.")
    force: bool = result(False, "Make it even where memory is expected not to suffice.")
    preview: bool = result(False, "Show what each step predicts, in the terminal.")
    keep_latents: bool = result(False, "Keep the first stage beside the clip, for `ltx finish`.")
    first_stage: bool = result(False, "Stop after the first stage, at half the size; `ltx finish` goes on from it.")
    json: bool = result(False, "One JSON object per event on standard output.")
    quiet: bool = result(False, "Print errors only.", "--quiet", "-q")


@dataclass(frozen=True)
class Sharing:
    """Devices that make one clip together."""

    devices: int = memory(1, "Devices that make one clip together.", least=1, most=64)
    mesh: str | None = memory(
        None,
        "How they share it: sp devices the tokens, cfg groups of them the guidance passes, fsdp devices the weights.",
        metavar="sp=N,cfg=N,fsdp=N",
        shown="by passes and memory",
    )


# Guidance ----------------------------------------------------------------------------------------------------------

# Field of the guidance -> what stands in its spelling, help, and what else an option says.
GUIDANCE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "cfg_scale": ("{stream}-cfg-guidance-scale", "Towards the prompt; 1 is off.", {}),
    "stg_scale": ("{stream}-stg-guidance-scale", "Away from perturbed self-attention; 0 is off.", {"shown": "1"}),
    "stg_blocks": ("{stream}-stg-blocks", "Blocks perturbed for that.", {"shown": by_version("stg_blocks")}),
    "rescale_scale": ("{stream}-rescale-scale", "Keep the spread of the plain prediction; 0 is off.", {"shown": "0.7"}),
    "modality_scale": ("{cross}-guidance-scale", "Away from {stream} without its partner; 1 is off.", {"shown": "3"}),
    "skip_step": ("{stream}-skip-step", "Steps that reuse the last guided result.", {"least": 0, "shown": "0"}),
}
SHOWN_CFG = {"video": "3", "audio": "7"}
GROUPS = {"video": "Guidance of the picture", "audio": "Guidance of the sound"}
ALIASES = {"video_cfg_scale": ("--cfg-scale", "--cfg", "--guidance-scale")}


def guidance_options(stream: str) -> dict[str, Option]:
    """The single values of a stream's guidance, as `MultiModalGuiderParams` has them, by name."""
    kinds = {"stg_blocks": tuple[int, ...] | None, "skip_step": int | None}
    found = {}
    for field, (spelling, text, more) in GUIDANCE.items():
        name, words = f"{stream}_{field}", {"stream": stream, "cross": STREAMS[stream]}
        flags = ("--" + spelling.format(**words), *ALIASES.get(name, ()))
        facts = {"shown": SHOWN_CFG[stream], "group": GROUPS[stream], **more}
        found[name] = Option(name, kinds.get(field, Scale | None), None, text.format(**words), flags, **facts)
    return found


def request_options() -> dict[str, Option]:
    """Every field of a request, the single values of guidance included."""
    return options_of(Request) | {name: one for stream in STREAMS for name, one in guidance_options(stream).items()}


# Sizes -------------------------------------------------------------------------------------------------------------


def fit_shape(
    shape: VideoPixelShape, factors: SpatioTemporalScaleFactors, multiple: int, snap: bool
) -> VideoPixelShape:
    """The nearest shape the VAE can hold; without ``snap`` any other is refused."""
    if snap:
        shape = shape._replace(
            frames=factors.nearest_frames(shape.frames),
            height=nearest_multiple(shape.height, factors.height * multiple),
            width=nearest_multiple(shape.width, factors.width * multiple),
        )
    factors.check(shape, multiple)
    return shape
