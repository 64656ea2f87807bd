"""Configurations of the audio VAE and the vocoder, read from a checkpoint's `config` JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import Any, Literal

from ltx_core.errors import ConfigError
from ltx_core.sections import check_choices, read_fields, section
from ltx_core.types import AUDIO_HOP_LENGTH, AUDIO_SAMPLE_RATE

NORM_GROUPS = 32
STEREO = 2


class CausalityAxis(Enum):
    """The axis of a mel picture ``[B, C, T, F]`` along which convolutions see only the past: height is time T."""

    HEIGHT = "height"
    WIDTH = "width"
    WIDTH_COMPATIBILITY = "width-compatibility"
    NONE = None


@dataclass(frozen=True)
class MelConfig:
    """The log-mel front end: magnitude spectrum, Slaney filters from 0 Hz to half the rate, natural log."""

    sample_rate: int = AUDIO_SAMPLE_RATE  # Hz
    n_fft: int = 1024  # samples; also the window length
    hop_length: int = AUDIO_HOP_LENGTH  # samples per mel frame
    bins: int = 64

    @property
    def min_samples(self) -> int:
        """The shortest clip that reflection can pad."""
        return self.n_fft // 2 + 1


@dataclass(frozen=True)
class AudioVaeConfig:
    """Configuration of both halves of the audio VAE, from a checkpoint. Raises ``ConfigError`` for contradictions."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2  # per encoder level; a decoder level has one more
    attn_resolutions: frozenset[int] = frozenset({8, 16, 32})
    resolution: int = 256
    z_channels: int = 8
    in_channels: int = STEREO
    out_ch: int = STEREO
    double_z: bool = True
    dropout: float = 0.0
    mid_block_add_attention: bool = True
    norm_type: Literal["pixel", "group"] = "pixel"
    causality_axis: CausalityAxis = CausalityAxis.HEIGHT
    resamp_with_conv: bool = True
    mel_bins: int | None = None  # bins of the decoded picture
    sample_rate: int = AUDIO_SAMPLE_RATE  # Hz
    n_fft: int = 1024
    hop_length: int = AUDIO_HOP_LENGTH
    is_causal: bool = True  # whether time stamps count the first mel frame alone

    def __post_init__(self) -> None:
        if not self.ch_mult:
            raise ConfigError("ch_mult is empty, expected one multiplier per level")
        check_choices(self, "audio VAE")
        axis = self.causality_axis
        if self.norm_type == "group":
            if axis is not CausalityAxis.NONE:
                raise ConfigError(f"norm_type is 'group' with causality_axis {axis.value!r}, expected null")
            if any(self.ch * mult % NORM_GROUPS for mult in self.ch_mult):
                raise ConfigError(f"ch is {self.ch} with norm_type 'group', expected a multiple of {NORM_GROUPS}")
        if not self.resamp_with_conv and axis is not CausalityAxis.NONE:
            raise ConfigError(f"resamp_with_conv is false with causality_axis {axis.value!r}, expected null")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the mel picture down."""
        return tuple(self.ch * mult for mult in self.ch_mult)

    def has_attention(self, level: int) -> bool:
        return self.resolution >> level in self.attn_resolutions

    @property
    def mel(self) -> MelConfig:
        """The front end whose pictures the encoder takes."""
        if self.mel_bins is None:
            raise ConfigError("mel_bins is absent, expected ddconfig.mel_bins or preprocessing.mel.n_mel_channels")
        return MelConfig(self.sample_rate, self.n_fft, self.hop_length, self.mel_bins)

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> AudioVaeConfig:
        """Read `audio_vae.model.params` and `audio_vae.preprocessing` of a checkpoint's whole config."""
        audio_vae = section(config, "audio_vae")
        params = section(section(audio_vae, "model"), "params")
        dd = section(params, "ddconfig")
        preprocessing = audio_vae.get("preprocessing") or {}
        stft, mel = preprocessing.get("stft") or {}, preprocessing.get("mel") or {}
        if (kind := dd.get("attn_type", "vanilla")) != "vanilla":
            raise ConfigError(f"attn_type is {kind!r}, expected 'vanilla'")
        bins = (dd.get("mel_bins"), mel.get("n_mel_channels"), (audio_vae.get("variables") or {}).get("mel_bins"))
        given = read_fields(cls, dd) | read_fields(cls, stft, n_fft="filter_length", is_causal="causal")
        given["mel_bins"] = next((value for value in bins if value is not None), None)
        given["sample_rate"] = params.get("sampling_rate", AUDIO_SAMPLE_RATE)
        if "attn_resolutions" in dd:
            given["attn_resolutions"] = frozenset(dd["attn_resolutions"])
        if "causality_axis" in dd:
            given["causality_axis"] = causality_axis(dd["causality_axis"])
        return cls(**given)


@dataclass(frozen=True)
class GeneratorConfig:
    """One mel-to-waveform generator."""

    resblock: str = "1"  # "1": leaky ReLU (19B); "AMP1": alias-free snake-beta (2.3 and 2.5)
    upsample_initial_channel: int = 1024
    upsample_rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 15, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    final_activation: str | None = "tanh"  # "tanh", "clamp" to [-1, 1], or None
    use_bias_at_final: bool = True

    def __post_init__(self) -> None:
        if len(self.upsample_rates) != len(self.upsample_kernel_sizes):
            counts = f"{len(self.upsample_kernel_sizes)} entries for {len(self.upsample_rates)} upsample_rates"
            raise ConfigError(f"upsample_kernel_sizes has {counts}, expected equal lengths")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            counts = f"{len(self.resblock_dilation_sizes)} entries for {len(self.resblock_kernel_sizes)} kernel sizes"
            raise ConfigError(f"resblock_dilation_sizes has {counts}, expected equal lengths")
        if self.upsample_initial_channel >> len(self.upsample_rates) < 1:
            least = f"at least {2 ** len(self.upsample_rates)}"
            raise ConfigError(f"upsample_initial_channel is {self.upsample_initial_channel}, expected {least}")

    @property
    def is_alias_free(self) -> bool:
        return self.resblock == "AMP1"

    @property
    def total_rate(self) -> int:
        """Samples per mel frame."""
        return prod(self.upsample_rates)

    @classmethod
    def from_section(
        cls, values: Mapping[str, Any], resblock: str, has_final_activation: bool = True
    ) -> GeneratorConfig:
        """Read one generator's keys; ``resblock`` is the only kind its place in the checkpoint allows."""
        if (kind := values.get("resblock", "1")) != resblock:
            raise ConfigError(f"vocoder resblock is {kind!r}, expected {resblock!r}")
        if values.get("stereo") is not True:
            raise ConfigError(f"vocoder stereo is {values.get('stereo')!r}, expected true")
        if resblock == "AMP1" and (activation := values.get("activation", "snake")) != "snakebeta":
            raise ConfigError(f"vocoder activation is {activation!r}, expected 'snakebeta'")
        final = "tanh" if values.get("use_tanh_at_final", True) else "clamp"
        return cls(**read_fields(cls, values) | {"final_activation": final if has_final_activation else None})


@dataclass(frozen=True)
class BandwidthExtensionConfig:
    """The second stage of the 2.3 and 2.5 vocoder: a waveform at a low rate in, one at a higher rate out."""

    generator: GeneratorConfig
    input_sampling_rate: int  # Hz
    output_sampling_rate: int  # Hz
    hop_length: int  # low-rate samples per frame of the intermediate mel
    n_fft: int
    num_mels: int = 64

    def __post_init__(self) -> None:
        if self.output_sampling_rate % self.input_sampling_rate:
            rates = f"{self.output_sampling_rate} for an input rate of {self.input_sampling_rate}"
            raise ConfigError(f"bwe output_sampling_rate is {rates}, expected a multiple")
        if self.generator.total_rate != self.hop_length * self.ratio:
            expected = f"hop_length * rate ratio = {self.hop_length * self.ratio}"
            raise ConfigError(f"bwe upsample_rates multiply to {self.generator.total_rate}, expected {expected}")

    @property
    def ratio(self) -> int:
        return self.output_sampling_rate // self.input_sampling_rate


@dataclass(frozen=True)
class VocoderConfig:
    """A vocoder of either kind; ``extension`` is what tells them apart."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    output_sampling_rate: int = 24000  # Hz
    extension: BandwidthExtensionConfig | None = None

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> VocoderConfig:
        """Read `vocoder` of a checkpoint's whole config: flat for the 19B kind, nested with `bwe` for 2.3 and 2.5."""
        vocoder = section(config, "vocoder")
        if "bwe" not in vocoder:
            return cls(GeneratorConfig.from_section(vocoder, "1"), vocoder.get("output_sampling_rate", 24000))
        bwe = section(vocoder, "bwe")
        required = ("input_sampling_rate", "output_sampling_rate", "hop_length", "n_fft", "num_mels")
        if missing := [name for name in required if name not in bwe]:
            raise ConfigError(f"vocoder.bwe has no {', '.join(missing)}, expected {', '.join(required)}")
        extension = BandwidthExtensionConfig(
            GeneratorConfig.from_section(bwe, "AMP1", has_final_activation=False), *(bwe[name] for name in required)
        )
        generator = GeneratorConfig.from_section(section(vocoder, "vocoder"), "AMP1")
        return cls(generator, extension.output_sampling_rate, extension)


def causality_axis(value: str | None) -> CausalityAxis:
    """JSON null means no causal axis; the string "none" is not a name of it."""
    known = {axis.value: axis for axis in CausalityAxis}
    if value not in known:
        raise ConfigError(f"causality_axis is {value!r}, expected 'height', 'width', 'width-compatibility' or null")
    return known[value]
