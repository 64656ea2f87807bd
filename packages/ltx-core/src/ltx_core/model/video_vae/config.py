"""The architecture of a video VAE, read from a checkpoint's ``config`` JSON.

A block list is ``[[name, params], ...]`` where params is a dict or an integer n, short for ``{"num_layers": n}``:

=========================  ==============================  =================================  ======================
name                       encoder                         decoder                            params
=========================  ==============================  =================================  ======================
res_x                      n resnets                       n resnets, timestep, noise         num_layers, noise
res_x_y                    resnet C -> C*m                 resnet C -> C/m                    multiplier m = 2
attn                       attention within each frame     same                               none
compress_{time,space,all}  strided convolution C -> C      depth to space C -> C/m            multiplier 1, residual
compress_all_x_y           strided convolution C -> C*m                                       multiplier m = 2
compress_*_res             space to depth C -> C*m                                            multiplier m = 2
=========================  ==============================  =================================  ======================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ltx_core.errors import ConfigError, check_known
from ltx_core.model.video_vae.diffusion.config import DiffusionDecoderConfig
from ltx_core.sections import check_choices, read_fields, section
from ltx_core.types import SpatioTemporalScaleFactors

Family = Literal["ltx2", "ltxv"]
NormLayer = Literal["pixel_norm", "group_norm"]
LogVar = Literal["uniform", "per_channel", "constant", "none"]
Stem = Literal["space_to_depth", "haar"]  # how pixels of a patch become channels
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

STRIDES = {"time": (2, 1, 1), "space": (1, 2, 2), "all": (2, 2, 2)}  # of compress_<key>, along T, H, W
ENCODER_BLOCKS = (
    *("res_x", "res_x_y", "attn", "compress_time", "compress_space", "compress_all", "compress_all_x_y"),
    *("compress_time_res", "compress_space_res", "compress_all_res"),
)
DECODER_BLOCKS = ("res_x", "res_x_y", "attn", "compress_time", "compress_space", "compress_all")

#: What absent keys mean that are no field's default: LTX-Video (0.9.x) files were written for others than LTX-2 files.
FAMILY_DEFAULTS: dict[Family, dict[str, Any]] = {
    "ltx2": {"timestep_conditioning": True},
    "ltxv": {
        "patch_size": 1,
        "norm_layer": "group_norm",
        "latent_log_var": "per_channel",
        "decoder_padding": "zeros",
    },
}
MOST_LAYERS = 1000  # of a block; published ones have at most 6


@dataclass(frozen=True)
class BlockConfig:
    """One entry of a block list."""

    name: str
    num_layers: int = 1
    multiplier: int = 1  # of channels
    residual: bool = False
    inject_noise: bool = False

    @property
    def stride(self) -> tuple[int, int, int]:
        """Of a ``compress_*`` block, along T, H and W."""
        return STRIDES[self.name.split("_")[1]]

    @classmethod
    def parse(cls, entry: Sequence[Any], known: Sequence[str]) -> BlockConfig:
        """Read ``[name, params]``. Raises ``ConfigError`` for a name that is not ``known``."""
        name, params = str(entry[0]), entry[1] if len(entry) > 1 else {}
        check_known("VAE block", name, known)
        if not isinstance(params, Mapping):
            params = {"num_layers": int(params)}
        if not 1 <= int(params.get("num_layers", 1)) <= MOST_LAYERS:
            raise ConfigError(f"VAE block {name} has {params['num_layers']} layers, expected 1 to {MOST_LAYERS}")
        if name == "res_x" and "num_layers" not in params:
            raise ConfigError("VAE block res_x has no num_layers")
        usual = 2 if name.endswith(("_y", "_res")) else 1
        return cls(
            name,
            num_layers=int(params.get("num_layers", 1)),
            multiplier=usual if params.get("multiplier") is None else params["multiplier"],
            residual=bool(params.get("residual", False)) and name == "compress_all",
            inject_noise=bool(params.get("inject_noise", False)),
        )


def parse_blocks(entries: Sequence[Sequence[Any]] | None, known: Sequence[str]) -> tuple[BlockConfig, ...]:
    """Read a whole block list in file order."""
    return tuple(BlockConfig.parse(entry, known) for entry in entries or ())


@dataclass(frozen=True)
class VideoVaeConfig:
    """Both halves of a video VAE. Widths in channels; block lists in file order."""

    family: Family = "ltx2"
    latent_channels: int = 128
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int = 4
    stem: Stem = "space_to_depth"
    norm_layer: NormLayer = "pixel_norm"
    latent_log_var: LogVar = "uniform"
    latent_log_var_value: float | None = None  # the log-variance of `constant`
    encoder_blocks: tuple[BlockConfig, ...] = ()
    encoder_base_channels: int = 128
    encoder_padding: PaddingMode = "zeros"
    decoder_blocks: tuple[BlockConfig, ...] = ()
    decoder_base_channels: int = 128
    decoder_padding: PaddingMode = "reflect"
    causal_decoder: bool = False
    timestep_conditioning: bool = False
    decode_timestep: float = 0.05  # when the caller of a timestep-conditioned decoder gives none
    decode_noise_scale: float = 0.025  # share of noise mixed into the latent by such a decoder
    diffusion_decoder: DiffusionDecoderConfig | None = None  # in place of the convolutional decoder

    def __post_init__(self) -> None:
        check_choices(self, "video VAE")
        if self.stem == "haar" and self.patch_size & (self.patch_size - 1):
            raise ConfigError(f"video VAE patch_size is {self.patch_size}, expected a power of two for a haar stem")

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any], family: Family | None = None) -> VideoVaeConfig:
        """Read ``config["vae"]`` of a checkpoint, in the flat or in the nested (LTX-2.5 diffusion) layout.

        ``family`` decides what absent keys mean; left out, ``detect_family`` reads it off the config. Raises
        ``ConfigError`` when there is no such section, or for a value the networks do not support.
        """
        vae = section(config, "vae")
        if (dims := vae.get("dims", 3)) not in (3, [3]):
            raise ConfigError(f"video VAE dims is {dims}, expected 3")
        family = family or detect_family(config)
        if vae.get("_class_name", "CausalVideoAutoencoder") == "CausalVideoAutoencoder":
            return cls._from_flat(vae, family)
        if not isinstance(encoder := vae.get("encoder"), Mapping):
            raise ConfigError(f"video VAE of class {vae['_class_name']} has no `encoder` section")
        found = cls._from_flat(_flat_encoder(encoder), family)
        return replace(found, diffusion_decoder=DiffusionDecoderConfig.from_vae(vae))

    @classmethod
    def _from_flat(cls, vae: Mapping[str, Any], family: Family) -> VideoVaeConfig:
        given = FAMILY_DEFAULTS[family] | read_fields(cls, vae)
        both = vae.get("blocks")  # LTX-Video 0.9.0: one list for both halves
        given |= {
            "family": family,
            "encoder_blocks": parse_blocks(vae.get("encoder_blocks", both), ENCODER_BLOCKS),
            "decoder_blocks": parse_blocks(vae.get("decoder_blocks", both), DECODER_BLOCKS),
            "encoder_padding": vae.get("encoder_spatial_padding_mode", "zeros"),
            "diffusion_decoder": None,
        }
        if family == "ltx2":
            given["encoder_base_channels"] = given.get("latent_channels", 128)
        if mode := vae.get("spatial_padding_mode"):
            given |= {"encoder_padding": mode, "decoder_padding": mode}
        return cls(**given)

    @property
    def encoder_scale_factors(self) -> SpatioTemporalScaleFactors:
        """Pixels per latent cell, from the encoder's blocks."""
        return SpatioTemporalScaleFactors.from_blocks([[b.name] for b in self.encoder_blocks], self.patch_size)

    @property
    def decoder_scale_factors(self) -> SpatioTemporalScaleFactors:
        """Pixels per latent cell, from the decoder's blocks or upsamples."""
        if self.diffusion_decoder:
            return self.diffusion_decoder.scale_factors
        return SpatioTemporalScaleFactors.from_blocks([[b.name] for b in self.decoder_blocks], self.patch_size)

    @property
    def decoder_width(self) -> int:
        """Channels at the decoder's entrance: every block that narrows the stream does so from here."""
        narrowing = (b.multiplier for b in self.decoder_blocks if b.name == "res_x_y" or b.name.startswith("compress"))
        return self.decoder_base_channels * math.prod(narrowing)


def _flat_encoder(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's section of the nested layout as the flat layout says it, without a decoder."""
    latent_channels = encoder.get("out_channels", 128)
    return {
        **{key: value for key, value in encoder.items() if key != "out_channels"},
        "latent_channels": latent_channels,
        "encoder_base_channels": latent_channels,
        "encoder_blocks": encoder.get("blocks", encoder.get("encoder_blocks")),
        "decoder_blocks": (),
        "timestep_conditioning": False,
    }


def detect_family(config: Mapping[str, Any]) -> Family:
    """Whether a checkpoint's config was written for LTX-2 or for LTX-Video 0.9.x.

    The transformer's class tells where there is one. A VAE alone is LTX-Video's when one block list serves both halves
    (0.9.0) or its decoder is timestep-conditioned (0.9.1 to 0.9.8); no LTX-2 model has either.
    """
    transformer = config.get("transformer")
    if isinstance(transformer, Mapping) and "_class_name" in transformer:
        return "ltxv" if transformer["_class_name"] == "Transformer3DModel" else "ltx2"
    vae = config.get("vae") or {}
    return "ltxv" if "blocks" in vae or vae.get("timestep_conditioning") else "ltx2"
