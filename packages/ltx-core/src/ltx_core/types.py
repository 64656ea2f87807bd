"""Shapes with all their rounding rules, the scale factors between pixels and latents, and the state of one stream.

Nothing else in the project writes ``(frames - 1) // 8 + 1``: every conversion between pixels, seconds, latents and
tokens is a method here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ltx_core.errors import ConfigError, check_least

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VIDEO_LATENT_CHANNELS = 128
AUDIO_LATENT_CHANNELS = 8
AUDIO_MEL_BINS = 16
AUDIO_SAMPLE_RATE = 16000  # Hz
AUDIO_HOP_LENGTH = 160  # samples per mel frame
AUDIO_LATENT_DOWNSAMPLE_FACTOR = 4  # mel frames per latent frame: 25 latent frames a second


class VideoPixelShape(NamedTuple):
    """A video in pixels.

    ``batch`` counts clips, ``frames`` the pictures of each; ``height`` and ``width`` are in pixels, ``fps`` in pictures
    per second. Nothing is checked here: `SpatioTemporalScaleFactors.check` refuses what a VAE cannot hold.
    """

    batch: int
    frames: int
    height: int
    width: int
    fps: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps


class SpatioTemporalScaleFactors(NamedTuple):
    """Pixels per latent cell on each axis."""

    time: int
    height: int
    width: int

    @classmethod
    def default(cls) -> SpatioTemporalScaleFactors:
        """8 frames and 32 x 32 pixels, as in every published LTX checkpoint."""
        return cls(8, 32, 32)

    @classmethod
    def from_blocks(cls, blocks: Sequence[Sequence[Any]], patch_size: int) -> SpatioTemporalScaleFactors:
        """Read the factors off a VAE's block list ``[[name, params], ...]``."""
        names = [str(block[0]) for block in blocks]
        space = sum(name.startswith(("compress_space", "compress_all")) for name in names)
        time = sum(name.startswith(("compress_time", "compress_all")) for name in names)
        return cls(2**time, patch_size * 2**space, patch_size * 2**space)

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> SpatioTemporalScaleFactors:
        """Read the factors off a checkpoint's config; the default when it names no block list."""
        vae = config.get("vae") or {}
        blocks = vae.get("encoder_blocks") or vae.get("decoder_blocks")
        return cls.from_blocks(blocks, vae.get("patch_size", 4)) if blocks else cls.default()

    def latent_frames(self, frames: int) -> int:
        """Latent frames of ``frames`` pictures: one for the first, one for every ``time`` that follow, the rest cut."""
        return (frames - 1) // self.time + 1

    def snap_frames(self, frames: int) -> int:
        """The largest valid frame count ``k * time + 1`` that is not above ``frames`` (at least 1)."""
        return max(frames - 1, 0) // self.time * self.time + 1

    def nearest_frames(self, frames: int) -> int:
        """The valid frame count ``k * time + 1`` nearest to ``frames``; the larger one on a tie."""
        return max((frames - 1 + self.time // 2) // self.time, 0) * self.time + 1

    def cover_frames(self, frames: int) -> int:
        """The smallest valid frame count ``k * time + 1`` that is not below ``frames``."""
        return -(-max(frames - 1, 0) // self.time) * self.time + 1

    def covering(self, shape: VideoPixelShape, spatial_multiple: int = 1) -> VideoPixelShape:
        """The smallest valid shape that holds ``shape``; ``spatial_multiple`` as in `check`."""
        steps = self.height * spatial_multiple, self.width * spatial_multiple
        height, width = (-(-side // step) * step for side, step in zip(shape[2:4], steps, strict=True))
        return shape._replace(frames=self.cover_frames(shape.frames), height=height, width=width)

    def check(self, shape: VideoPixelShape, spatial_multiple: int = 1) -> None:
        """Refuse a size the VAE cannot hold exactly.

        ``spatial_multiple`` is 2 when a x2 upsampler follows: sides must then divide by 64. Raises ``ConfigError``
        that names the field, its value and the nearest valid value.
        """
        check_least("batch", shape.batch, 1)
        if not shape.fps > 0:
            raise ConfigError(f"fps is {shape.fps}, expected a positive number")
        if shape.frames < 1 or (shape.frames - 1) % self.time:
            nearest = self.nearest_frames(shape.frames)
            raise ConfigError(f"frames is {shape.frames}, expected {self.time}k+1; nearest valid: {nearest}")
        for name, value, factor in (("height", shape.height, self.height), ("width", shape.width, self.width)):
            step = factor * spatial_multiple
            if value < step or value % step:
                nearest = nearest_multiple(value, step)
                raise ConfigError(f"{name} is {value}, expected a multiple of {step}; nearest valid: {nearest}")


def nearest_multiple(value: float, step: int) -> int:
    """The positive multiple of ``step`` nearest to ``value``; the larger one on a tie."""
    return max(int((value + step / 2) // step), 1) * step


class VideoLatentShape(NamedTuple):
    """A video latent ``[B, C, F, H, W]``.

    ``batch`` counts clips, ``channels`` are 128 in published models, ``frames`` are latent frames, ``height`` and
    ``width`` latent cells.
    """

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    def to_torch_shape(self) -> torch.Size:
        from torch import Size

        return Size(self)

    @classmethod
    def from_torch_shape(cls, shape: Sequence[int]) -> VideoLatentShape:
        return cls(*shape)

    @classmethod
    def from_pixel_shape(
        cls,
        shape: VideoPixelShape,
        latent_channels: int = VIDEO_LATENT_CHANNELS,
        scale_factors: SpatioTemporalScaleFactors = SpatioTemporalScaleFactors(8, 32, 32),
    ) -> VideoLatentShape:
        """The latent of a video. Sizes that fill no whole cells are floored, with a warning that says what is left.

        ``SpatioTemporalScaleFactors.check`` refuses them.
        """
        latent = cls(
            shape.batch,
            latent_channels,
            scale_factors.latent_frames(shape.frames),
            shape.height // scale_factors.height,
            shape.width // scale_factors.width,
        )
        whole = latent.upscale(scale_factors)
        for name in ("frames", "height", "width"):
            if (given := getattr(shape, name)) != (left := getattr(whole, name)):
                warnings.warn(f"{name} is {given}, the latent holds {left}", stacklevel=2)
        return latent

    def upscale(
        self, scale_factors: SpatioTemporalScaleFactors = SpatioTemporalScaleFactors(8, 32, 32)
    ) -> VideoLatentShape:
        """The decoded video ``[B, 3, F, H, W]`` in pixels."""
        return VideoLatentShape(
            self.batch,
            3,
            (self.frames - 1) * scale_factors.time + 1,
            self.height * scale_factors.height,
            self.width * scale_factors.width,
        )

    @property
    def token_count(self) -> int:
        return self.frames * self.height * self.width

    @property
    def mask_shape(self) -> VideoLatentShape:
        return self._replace(channels=1)


class AudioLatentShape(NamedTuple):
    """An audio latent ``[B, C, T, M]``.

    ``batch`` counts clips; in published models there are 8 ``channels``, 25 latent ``frames`` a second and 16
    ``mel_bins``, which are the mel picture's 64 divided by 4.
    """

    batch: int
    channels: int
    frames: int
    mel_bins: int

    def to_torch_shape(self) -> torch.Size:
        from torch import Size

        return Size(self)

    @classmethod
    def from_torch_shape(cls, shape: Sequence[int]) -> AudioLatentShape:
        return cls(*shape)

    @classmethod
    def from_duration(
        cls,
        batch: int,
        duration: float,
        channels: int = AUDIO_LATENT_CHANNELS,
        mel_bins: int = AUDIO_MEL_BINS,
        sample_rate: int = AUDIO_SAMPLE_RATE,
        hop_length: int = AUDIO_HOP_LENGTH,
        audio_latent_downsample_factor: int = AUDIO_LATENT_DOWNSAMPLE_FACTOR,
    ) -> AudioLatentShape:
        """``duration`` in seconds; the frame count is rounded half to even."""
        rate = float(sample_rate) / float(hop_length) / float(audio_latent_downsample_factor)
        return cls(batch, channels, round(duration * rate), mel_bins)

    @classmethod
    def from_video_pixel_shape(cls, shape: VideoPixelShape, **kwargs: Any) -> AudioLatentShape:
        """The audio that lasts as long as the video; ``kwargs`` as in ``from_duration``."""
        return cls.from_duration(shape.batch, float(shape.frames) / float(shape.fps), **kwargs)

    @property
    def token_count(self) -> int:
        return self.frames

    @property
    def mask_shape(self) -> AudioLatentShape:
        return self._replace(channels=1, mel_bins=1)


@dataclass(frozen=True)
class Audio:
    """A waveform ``[..., channels, samples]`` in [-1, 1] and its rate in Hz."""

    waveform: Tensor
    sampling_rate: int

    def to(self, **kwargs: Any) -> Audio:
        return replace(self, waveform=self.waveform.to(**kwargs))

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.waveform.shape[-1] / self.sampling_rate


@dataclass(frozen=True)
class GeneratedKeyframeLayout:
    """Place of the generated keyframe slots in a token sequence."""

    pixel_frame_indices: tuple[int, ...]
    tokens_per_keyframe: int
    first_token: int

    @property
    def num_keyframes(self) -> int:
        return len(self.pixel_frame_indices)

    @property
    def num_tokens(self) -> int:
        return self.num_keyframes * self.tokens_per_keyframe

    @property
    def token_slice(self) -> slice:
        return slice(self.first_token, self.first_token + self.num_tokens)


@dataclass(frozen=True)
class LatentState:
    """One stream on its way from noise to a latent: N tokens of width D and what is known about each of them.

    ``latent`` ``[B, N, D]`` are the noisy tokens, ``clean_latent`` ``[B, N, D]`` what held ones are held at.
    ``denoise_mask`` ``[B, N, 1]`` float32 is 1 where a token is denoised fully, 0 where it is held. ``positions``
    ``[B, 3 or 1, N, 2]`` float32 are spans ``[start, end)`` in seconds, for video then in pixel rows and columns.
    Between ``unpatchify`` and ``patchify`` latents, denoise mask and keyframe mask are spatial instead.

    ``attention_mask`` ``[B, N, N]`` holds attention strengths in [0, 1]; None: all ones. ``keyframes_mask``
    ``[B, N, 1]`` is non-zero where a token encodes one single pixel frame; None: nowhere. ``release`` ``[B, N, 1]`` is
    how its hold falls with sigma, as a place in `CURVES`; None: nowhere. ``generated_keyframe_layout`` is the place
    of the keyframe slots among the tokens, None where there are none; ``generated_keyframes`` ``[B, C, K, H, W]`` are
    what ``clear_conditioning`` took out of them. With ``frozen`` the whole stream is held fixed at sigma 0.
    """

    latent: Tensor
    denoise_mask: Tensor
    positions: Tensor
    clean_latent: Tensor
    attention_mask: Tensor | None = None
    keyframes_mask: Tensor | None = None
    release: Tensor | None = None
    generated_keyframe_layout: GeneratedKeyframeLayout | None = None
    generated_keyframes: Tensor | None = None
    frozen: bool = False

    def clone(self) -> LatentState:
        """A state whose tensors are copies."""
        from torch import Tensor

        tensors: dict[str, Any] = {name: t.clone() for name, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **tensors)
