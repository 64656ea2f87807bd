"""The architecture of a neighbourhood-attention diffusion decoder, and the geometry that follows from it.

Four deterministic stages turn the latent into a context volume, each followed by an upsample; the fifth stage denoises
pixels on that volume. Axes are always in the order frames, height, width. A *cell* is a location of stage 4's input,
the grid that tiles are cut on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ltx_core.errors import ConfigError, check_known, check_least
from ltx_core.sections import read_fields
from ltx_core.types import SpatioTemporalScaleFactors

#: Tensors ``diff_blocks.{j}.gate_*`` [C] that some files store beside their blocks, and the layers whose results they
#: scale. Loading multiplies them into those layers.
GATES = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}

Axes = tuple[int, int, int]  # frames, height, width
Prediction = Literal["x0", "v"]

DETERMINISTIC_STAGES = 4
STAGES = DETERMINISTIC_STAGES + 1
KEYS = {  # of a decoder's section, where they are not the fields' names
    "latent_channels": "in_channels",
    "timestep_width": "t_emb_dim",
    "timestep_scale": "timestep_scale_multiplier",
    "steps": "default_num_inference_steps",
}
MODULATIONS = 7  # scale, shift and gate of attention and MLP, and the gate of the context
FRAMES_STEP, PIXELS_STEP = 8, 32  # tile sizes and overlaps in frames and pixels are multiples of these


@dataclass(frozen=True)
class StageConfig:
    """Blocks of one width and one neighbourhood."""

    width: int
    depth: int
    kernel: Axes

    @property
    def reach(self) -> Axes:
        """The distance that information travels through all blocks, in the stage's own locations."""
        return _axes([self.depth * (k // 2) for k in self.kernel])


@dataclass(frozen=True)
class UpsampleConfig:
    """Enlargement by ``stride``, leaving ``1 / reduction`` of the channels."""

    stride: Axes
    reduction: int

    @property
    def cells(self) -> int:
        return math.prod(self.stride)


@dataclass(frozen=True)
class DiffusionDecoderConfig:
    """A decoder of five stages. Defaults are those of absent keys, not of the published model."""

    latent_channels: int
    stages: tuple[StageConfig, ...]  # four deterministic ones, then the denoising one
    upsamples: tuple[UpsampleConfig, ...]  # after each deterministic stage
    out_channels: int = 3
    patch_size: int = 4
    head_dim: int = 64
    timestep_width: int = 384
    timestep_scale: float = 1.0
    steps: int = 2
    prediction: Prediction = "v"

    def __post_init__(self) -> None:
        if (len(self.stages), len(self.upsamples)) != (STAGES, DETERMINISTIC_STAGES):
            counts = f"{len(self.stages)} stages and {len(self.upsamples)} upsamples"
            raise ConfigError(f"diffusion decoder has {counts}, expected {STAGES} and {DETERMINISTIC_STAGES}")
        check_known("diffusion decoder model_output_type", self.prediction, get_args(Prediction))
        check_least("diffusion decoder default_num_inference_steps", self.steps, 1)
        for number, stage in enumerate(self.stages, 1):
            if stage.width % self.head_dim:
                expected = f"a multiple of head_dim {self.head_dim}"
                raise ConfigError(f"stage {number} has {stage.width} channels, expected {expected}")
            if min(stage.kernel) < 1:
                raise ConfigError(f"stage {number} has kernel {stage.kernel}, expected at least 1 on each axis")
        self._check_upsamples()

    def _check_upsamples(self) -> None:
        for number, (stage, upsample) in enumerate(zip(self.stages, self.upsamples, strict=False), 1):
            if min(upsample.stride) < 1 or upsample.stride[0] > 2:
                raise ConfigError(f"upsample {number} has stride {upsample.stride}, expected 1 or 2 in time")
            if stage.width % upsample.reduction:
                parts = f"{stage.width} channels by {upsample.reduction}"
                raise ConfigError(f"upsample {number} divides {parts}: does not divide")
            wanted, given = self.stages[number].width, stage.width // upsample.reduction
            if number < DETERMINISTIC_STAGES and wanted != given:
                raise ConfigError(f"upsample {number} gives {given} channels, stage {number + 1} takes {wanted}")

    @classmethod
    def from_vae(cls, vae: Mapping[str, Any]) -> DiffusionDecoderConfig:
        """Read the ``vae`` section of a checkpoint's config. Raises ``ConfigError`` for values no network can have."""
        decoder = vae.get("decoder") or {}
        if not isinstance(decoder, Mapping):
            raise ConfigError("diffusion VAE `decoder` section is no object, expected the description of a decoder")
        widths = list(decoder.get("stage_channels", (1024, 512, 256, 256, 128)))
        depths = decoder.get("stage_depths", (4, 6, 4, 2, 8))
        kernels = decoder.get("stage_kernels", ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5)))
        upsamples = decoder.get("upsamples", (((1, 2, 2), 2), ((2, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 2)))
        kernels = [*kernels[:DETERMINISTIC_STAGES], decoder.get("stage5_kernel", (3, 7, 7))]
        widths[DETERMINISTIC_STAGES:] = [decoder.get("stage5_channels") or widths[-1]]
        if not len(widths) == len(depths) == len(kernels):
            counts = f"{len(widths)} widths, {len(depths)} depths and {len(kernels)} kernels"
            raise ConfigError(f"diffusion decoder lists {counts}, expected {STAGES} of each")
        absent = {"in_channels": vae.get("latent_channels", 128), "head_dim": decoder.get("na_head_dim", 64)}
        given = read_fields(cls, {**absent, **decoder}, **KEYS)
        given["stages"] = tuple(StageConfig(w, d, _axes(k)) for w, d, k in zip(widths, depths, kernels, strict=True))
        given["upsamples"] = tuple(UpsampleConfig(_axes(stride), reduction) for stride, reduction in upsamples)
        return cls(**given | {"prediction": vae.get("model_output_type", "v")})

    @property
    def deterministic(self) -> tuple[StageConfig, ...]:
        return self.stages[:DETERMINISTIC_STAGES]

    @property
    def denoising(self) -> StageConfig:
        return self.stages[DETERMINISTIC_STAGES]

    @property
    def context_width(self) -> int:
        return self.stages[DETERMINISTIC_STAGES - 1].width // self.upsamples[-1].reduction

    def stride_before(self, stage: int) -> Axes:
        """Locations of stage ``stage`` (0 to 4) per latent cell on each axis."""
        return _axes([math.prod(u.stride[axis] for u in self.upsamples[:stage]) for axis in range(3)])

    @property
    def latent_cells(self) -> Axes:
        """Cells of stage 4's input per latent cell."""
        return self.stride_before(DETERMINISTIC_STAGES - 1)

    @property
    def cell_factors(self) -> SpatioTemporalScaleFactors:
        """Frames and pixels per cell of stage 4's input."""
        t, h, w = self.upsamples[-1].stride
        return SpatioTemporalScaleFactors(t, h * self.patch_size, w * self.patch_size)

    @property
    def scale_factors(self) -> SpatioTemporalScaleFactors:
        """Frames and pixels per latent cell."""
        t, h, w = self.stride_before(DETERMINISTIC_STAGES)
        return SpatioTemporalScaleFactors(t, h * self.patch_size, w * self.patch_size)

    @property
    def ghost_frames(self) -> int:
        """Copies of the last latent frame that stages 1 to 4 see beyond the end."""
        return 2 * (self.stages[0].kernel[0] // 2)

    @property
    def min_latent(self) -> Axes:
        """The smallest latent whose neighbourhoods fit at every stage."""
        stages = [(stage.kernel, self.stride_before(index)) for index, stage in enumerate(self.stages)]
        return _axes([max(math.ceil(kernel[axis] / stride[axis]) for kernel, stride in stages) for axis in range(3)])

    @property
    def min_tile(self) -> Axes:
        """The smallest tile, in cells, whose neighbourhoods fit at stages 4 and 5."""
        axes = zip(self.deterministic[-1].kernel, self.denoising.kernel, self.upsamples[-1].stride, strict=True)
        return _axes([max(small, math.ceil(large / step)) for small, large, step in axes])

    @property
    def halos(self) -> tuple[Axes, Axes]:
        """The distances, in cells, that information travels through stage 4 and through stage 5."""
        axes = zip(self.denoising.reach, self.upsamples[-1].stride, strict=True)
        return self.deterministic[-1].reach, _axes([math.ceil(reach / step) for reach, step in axes])

    @property
    def overlap(self) -> tuple[int, int]:
        """The overlap that tiles need, in frames and in pixels."""
        fourth, fifth = self.halos
        frames = self.cell_factors.time * max(fourth[0], fifth[0])
        pixels = max(self.cell_factors[1:]) * max(*fourth[1:], *fifth[1:])
        return round_up(frames, FRAMES_STEP), round_up(pixels, PIXELS_STEP)


def round_up(value: int, step: int) -> int:
    """The least multiple of ``step`` that is at least ``value``."""
    return math.ceil(value / step) * step


def _axes(values: Sequence[int]) -> Axes:
    if len(values) != 3:
        raise ConfigError(f"diffusion decoder has {list(values)} for three axes, expected frames, height and width")
    t, h, w = (int(value) for value in values)
    return t, h, w
