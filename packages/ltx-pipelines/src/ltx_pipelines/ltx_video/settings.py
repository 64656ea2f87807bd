"""Settings of LTX-Video 0.9.x besides the request: published ones as data, and the YAML files users have.

A config names the model files and how to sample. Its sampling keys stand at the top (one pass), or in ``first_pass``
and ``second_pass`` of a multi-scale config, where they override those at the top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ltx_core.components.schedulers import LTXV_DISTILLED_SIGMAS, LTXV_SECOND_PASS_SIGMAS
from ltx_core.errors import ConfigError, nearest_hint
from ltx_core.guidance.perturbations import SKIP_STRATEGIES
from ltx_core.textfiles import read_yaml
from ltx_core.types import VideoPixelShape
from ltx_pipelines.planning.plan import LTXVideoSettings

PerStep = float | tuple[float, ...]
Blocks = tuple[int, ...]

STRICT = ConfigDict(extra="forbid")
PRECISIONS = {  # working dtype, quantisation
    "bfloat16": ("bfloat16", None),
    "float8_e4m3fn": ("bfloat16", "fp8-cast"),
    "mixed_precision": ("float32", None),
    "float32": ("float32", None),
}


@dataclass(frozen=True)
class Sampling:
    """Sampling of one pass.

    A scale is one number for all steps or a list: with ``guidance_timesteps`` a step at t takes the entry of the first
    of them that is not above t (the last entry when all are above), without them the entry of its own number.
    ``skip_block_list`` is one list of blocks or a list of lists chosen the same way.
    """

    num_inference_steps: int = 20
    timesteps: tuple[float, ...] | None = None  # falling noise levels; None: the checkpoint's schedule
    skip_initial_inference_steps: int = 0
    skip_final_inference_steps: int = 0
    guidance_scale: PerStep = 4.5  # classifier-free guidance; 1: none
    stg_scale: PerStep = 1.0  # spatio-temporal guidance; 0: none
    rescaling_scale: PerStep = 0.7  # share of the conditional prediction's spread that is restored; 1: all
    guidance_timesteps: tuple[float, ...] | None = None
    cfg_star_rescale: bool = False
    skip_block_list: Blocks | tuple[Blocks, ...] | None = None  # perturbed by spatio-temporal guidance
    tone_map_compression_ratio: float = 0.0  # in [0, 1], before decoding

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class LTXVConfig:
    """A pipeline config. ``passes`` holds one `Sampling` for ``base``, two for ``multi-scale``."""

    passes: tuple[Sampling, ...] = (Sampling(),)
    pipeline_type: Literal["base", "multi-scale"] = "base"
    checkpoint_path: str | None = None
    spatial_upscaler_model_path: str | None = None
    text_encoder_model_name_or_path: str | None = None  # folder of a T5 encoder and its tokenizer
    downscale_factor: float = 0.6666666  # of the first of two passes
    stg_mode: str = "attention_values"  # one of `SKIP_STRATEGIES`
    decode_timestep: float = 0.0  # noise level a timestep-conditioned decoder is told
    decode_noise_scale: float | None = None  # share of noise mixed into the latent; None: as decode_timestep
    stochastic_sampling: bool = False  # fresh noise at every step
    precision: Literal["bfloat16", "float8_e4m3fn", "mixed_precision", "float32"] | None = None  # None: automatic
    sampler: Literal["from_checkpoint", "uniform", "linear-quadratic"] = "from_checkpoint"
    prompt_enhancement_words_threshold: int = 0  # shorter prompts are enhanced; 0: none
    prompt_enhancer_image_caption_model_name_or_path: str | None = None
    prompt_enhancer_llm_model_name_or_path: str | None = None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        expected = 2 if self.pipeline_type == "multi-scale" else 1
        if len(self.passes) != expected:
            raise ConfigError(f"pipeline_type {self.pipeline_type} has {len(self.passes)} passes, expected {expected}")
        if self.stg_mode.lower() not in SKIP_STRATEGIES:
            raise ConfigError(f"stg_mode is {self.stg_mode!r}, expected one of {', '.join(SKIP_STRATEGIES)}")
        if not 0 < self.downscale_factor <= 1:
            raise ConfigError(f"downscale_factor is {self.downscale_factor}, expected 0 < factor <= 1")

    def networks(self) -> dict[str, Any]:
        """The settings of the model, by the names of `ltx_pipelines.request.Networks`."""
        dtype, quantization = PRECISIONS.get(self.precision or "", (None, None))
        named = {
            "checkpoint_path": self.checkpoint_path,
            "spatial_upsampler": self.spatial_upscaler_model_path,
            "text_encoder": self.text_encoder_model_name_or_path,
            "dtype": dtype,
            "quantization": quantization,
        }
        return {name: value for name, value in named.items() if value is not None}

    def decoding(self, asked: VideoPixelShape, last: Sampling) -> LTXVideoSettings:
        """The part of a plan that says how the latent of a ``last`` pass is decoded to the size that is asked for."""
        return LTXVideoSettings(asked, self.decode_timestep, self.decode_noise_scale, last.tone_map_compression_ratio)

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], where: str = "pipeline config") -> LTXVConfig:
        """Read the keys of a pipeline config. Raises ``ConfigError`` that names the first key that does not fit."""
        own = {field.name for field in fields(cls)} - {"passes"}
        sampling = {field.name for field in fields(Sampling)}
        names = ("first_pass", "second_pass") if given.get("pipeline_type") == "multi-scale" else ()
        _check_keys(given, {*own, *sampling, *names}, where)
        top = {key: value for key, value in given.items() if key in sampling}
        overrides: list[Mapping[str, Any]] = [given.get(name) or {} for name in names] or [{}]
        for name, override in zip(names, overrides, strict=False):
            _check_keys(override, sampling, f"{where}: {name}")
        settings = {key: value for key, value in given.items() if key in own}
        try:
            return CONFIG.validate_python({**settings, "passes": [{**top, **override} for override in overrides]})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{where}: {place} is {first['input']!r}: {first['msg']}") from error


CONFIG: TypeAdapter[LTXVConfig] = TypeAdapter(LTXVConfig)


def read_config(path: str | Path) -> LTXVConfig:
    """Read a YAML pipeline config. Relative model paths that exist beside the file are taken from there."""
    path = Path(path)
    given = read_yaml(path)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: holds {type(given).__name__}, expected keys and values")
    config = LTXVConfig.from_mapping(given, str(path))
    named = ("checkpoint_path", "spatial_upscaler_model_path", "text_encoder_model_name_or_path")
    places = {name: path.parent / model for name in named if (model := getattr(config, name))}
    there: dict[str, Any] = {name: str(place) for name, place in places.items() if place.exists()}
    return replace(config, **there)


def _check_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest_hint(str(key), sorted(known))}")


DISTILLED = Sampling(guidance_scale=1.0, stg_scale=0.0, rescaling_scale=1.0)
FULL_2B = Sampling(
    num_inference_steps=40, guidance_scale=3.0, stg_scale=1.0, rescaling_scale=0.7, skip_block_list=(19,)
)
FIRST_13B = Sampling(
    num_inference_steps=30,
    skip_final_inference_steps=3,
    guidance_timesteps=(1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618),
    guidance_scale=(1.0, 1.0, 6.0, 8.0, 6.0, 1.0, 1.0),
    stg_scale=(0.0, 0.0, 4.0, 4.0, 4.0, 2.0, 1.0),
    rescaling_scale=(1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0),
    skip_block_list=((), (11, 25, 35, 39), (22, 35, 39), (28,), (28,), (28,), (28,)),
    cfg_star_rescale=True,
)
SECOND_13B = Sampling(
    num_inference_steps=30,
    skip_initial_inference_steps=17,
    guidance_scale=1.0,
    stg_scale=1.0,
    rescaling_scale=1.0,
    skip_block_list=(27,),
    cfg_star_rescale=True,
)
FIRST_DISTILLED = replace(DISTILLED, timesteps=LTXV_DISTILLED_SIGMAS)
SECOND_DISTILLED = replace(DISTILLED, timesteps=LTXV_SECOND_PASS_SIGMAS)


def _published(*passes: Sampling, stochastic: bool = False) -> LTXVConfig:
    return LTXVConfig(
        passes=passes,
        pipeline_type="multi-scale" if len(passes) == 2 else "base",
        decode_timestep=0.05,
        decode_noise_scale=0.025,
        stochastic_sampling=stochastic,
        prompt_enhancement_words_threshold=120,
    )


#: Settings of the released checkpoints, by size and version.
PUBLISHED: Mapping[str, LTXVConfig] = {
    "2b-0.9": _published(FULL_2B),
    "2b-0.9.1": _published(FULL_2B),
    "2b-0.9.5": _published(FULL_2B),
    "2b-0.9.6-dev": _published(FULL_2B),
    "2b-0.9.6-distilled": _published(replace(DISTILLED, num_inference_steps=8), stochastic=True),
    "2b-0.9.8-distilled": _published(FIRST_DISTILLED, SECOND_DISTILLED),
    "13b-0.9.8-dev": _published(FIRST_13B, SECOND_13B),
    "13b-0.9.8-distilled": _published(FIRST_DISTILLED, replace(SECOND_DISTILLED, tone_map_compression_ratio=0.6)),
}


def find_config(name: str | Path) -> LTXVConfig:
    """The config of a YAML file, or a published one by its name or that of its file (``ltxv-13b-0.9.8-dev.yaml``).

    Raises ``ConfigError`` that lists the published ones.
    """
    path = Path(name)
    if path.is_file():
        return read_config(path)
    short = path.name.removesuffix(".yaml").removeprefix("ltxv-")
    if short not in PUBLISHED:
        raise ConfigError(f"pipeline config is {str(name)!r}, expected a YAML file or one of {', '.join(PUBLISHED)}")
    return PUBLISHED[short]
