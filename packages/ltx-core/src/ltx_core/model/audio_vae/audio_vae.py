"""The audio VAE: a stereo log-mel picture to 25 latents a second, and back.

    AudioEncoder   mel [B, 2, M, 64] -> conv_in -> down levels 0..n-1 -> mid -> conv_out -> mean half, normalised
                   latent [B, 8, L, 16], L = ceil(M / 4)
    AudioDecoder   latent [B, 8, L, 16], un-normalised -> conv_in -> mid -> up levels n-1..0 -> conv_out
                   mel [B, 2, 4L-3, 64]

Sizes are those of the published configs, causal in time: mel frames up to 4i depend on latents 0..i only.

Pictures are [B, C, T, F]: T = time (height), F = mel bins (width). Tensors (after the component's prefix; parts of
blocks are listed with them):

    conv_in.conv.*, mid.{block_1, block_2}.*, mid.attn_1.*, norm_out.*, conv_out.conv.*
    down.{level}.block.{n}.*, down.{level}.attn.{n}.*, down.{level}.downsample.conv.*          encoder
    up.{level}.block.{n}.*, up.{level}.attn.{n}.*, up.{level}.upsample.conv.conv.*             decoder
    per_channel_statistics.{mean-of-means, std-of-means} [ch]                                  both halves
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.errors import ConditioningError, ConfigError, check_shape
from ltx_core.model.audio_vae.config import NORM_GROUPS, AudioVaeConfig, CausalityAxis
from ltx_core.model.audio_vae.mel import log_mel, resample, to_stereo
from ltx_core.model.audio_vae.vocoder import Vocoder
from ltx_core.model.video_vae.ops import PerChannelStatistics
from ltx_core.types import AUDIO_LATENT_DOWNSAMPLE_FACTOR, Audio


class AudioEncoder(nn.Module):
    """Log-mel pictures ``[B, 2, M, bins]`` to normalised latents ``[B, C, L, F]``.

    ``config`` describes the VAE; `AudioVaeConfig.from_metadata` reads it from a checkpoint.
    """

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.per_channel_statistics = TokenStatistics(config.ch)
        self.conv_in = AxisCausalConv2d(config.in_channels, config.ch, 3, config.causality_axis)
        inputs = (config.ch, *widths[:-1])
        self.down = nn.ModuleList(DownLevel(inputs[level], level, config) for level in range(len(widths)))
        self.mid = Middle(widths[-1], config)
        self.norm_out = norm(widths[-1], config)
        out_channels = 2 * config.z_channels if config.double_z else config.z_channels
        self.conv_out = AxisCausalConv2d(widths[-1], out_channels, 3, config.causality_axis)

    def forward(self, mel: Tensor) -> Tensor:
        """``mel`` [B, 2, M, bins] -> the mean of the posterior, normalised: [B, C, L, F], in the weights' dtype."""
        return self.per_channel_statistics.normalize(self.features(mel)[:, : self.config.z_channels])

    def moments(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, not normalised, each [B, C, L, F].

        Raises ``ConfigError`` when the encoder has no variance half (`double_z` false).
        """
        if not self.config.double_z:
            raise ConfigError("double_z is false, expected true: this encoder predicts no variance")
        mean, log_variance = self.features(mel).chunk(2, dim=1)
        return mean, log_variance

    def features(self, mel: Tensor) -> Tensor:
        """Everything before the split into mean and log-variance: [B, 2C (or C), L, F]."""
        check_shape("mel", mel.shape, ("B", self.config.in_channels, "frames", "bins"))
        x = self.conv_in(mel.to(self.conv_in.conv.weight))
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AudioDecoder(nn.Module):
    """Normalised latents ``[B, C, L, F]`` to log-mel pictures ``[B, 2, M, bins]``.

    ``config`` describes the VAE; `AudioVaeConfig.from_metadata` reads it from a checkpoint.
    """

    def __init__(self, config: AudioVaeConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.per_channel_statistics = TokenStatistics(config.ch)
        self.conv_in = AxisCausalConv2d(config.z_channels, widths[-1], 3, config.causality_axis)
        self.mid = Middle(widths[-1], config)
        inputs = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(UpLevel(inputs[level], level, config) for level in range(len(widths)))
        self.norm_out = norm(widths[0], config)
        self.conv_out = AxisCausalConv2d(widths[0], config.out_ch, 3, config.causality_axis)

    def forward(self, latent: Tensor) -> Tensor:
        """``latent`` [B, C, L, F], normalised -> mel [B, 2, max(4L-3, 1), mel_bins] (4L without a causal axis)."""
        check_shape("the audio latent", latent.shape, ("B", self.config.z_channels, "frames", "bins"))
        latent = latent.to(self.conv_in.conv.weight)
        x = self.conv_in(self.per_channel_statistics.un_normalize(latent))
        x = self.mid(x)
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return self.fit(x, latent.shape[2], latent.shape[3])

    def fit(self, mel: Tensor, latent_frames: int, latent_bins: int) -> Tensor:
        """Crop to the target size, then append zeros at the end of time and the top of frequency."""
        frames = latent_frames * AUDIO_LATENT_DOWNSAMPLE_FACTOR
        if self.config.causality_axis is not CausalityAxis.NONE:
            frames = max(frames - (AUDIO_LATENT_DOWNSAMPLE_FACTOR - 1), 1)
        bins = self.config.mel_bins or latent_bins
        mel = mel[:, : self.config.out_ch, :frames, :bins]
        missing = (0, bins - mel.shape[3], 0, frames - mel.shape[2])
        return F.pad(mel, missing) if any(missing) else mel


class Level(nn.Module):
    """Residual blocks of one resolution with optional attention after each."""

    def __init__(self, in_channels: int, level: int, count: int, config: AudioVaeConfig) -> None:
        super().__init__()
        width = config.widths[level]
        self.block = nn.ModuleList(ResnetBlock(width if n else in_channels, width, config) for n in range(count))
        self.attn = nn.ModuleList(AttnBlock(width, config) for _ in range(count if config.has_attention(level) else 0))

    def run_blocks(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x


class DownLevel(Level):
    """One encoder level, then half the size except at the last level."""

    def __init__(self, in_channels: int, level: int, config: AudioVaeConfig) -> None:
        super().__init__(in_channels, level, config.num_res_blocks, config)
        is_last = level == len(config.widths) - 1
        self.downsample = nn.Identity() if is_last else Downsample(config.widths[level], config)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.run_blocks(x))


class UpLevel(Level):
    """One decoder level, one block longer than the encoder's; then twice the size except at level 0."""

    def __init__(self, in_channels: int, level: int, config: AudioVaeConfig) -> None:
        super().__init__(in_channels, level, config.num_res_blocks + 1, config)
        self.upsample = Upsample(config.widths[level], config) if level else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.run_blocks(x))


class Middle(nn.Module):
    """Residual block, optional attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, config)
        self.attn_1 = AttnBlock(channels, config) if config.mid_block_add_attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def encode_audio(audio: Audio, encoder: AudioEncoder) -> Tensor:
    """Sound to normalised latents: [B, channels, N] (or [channels, N]) at any rate -> [B, C, L, F].

    Channels of ``audio`` become stereo and its rate that of ``encoder``; the mel picture is computed in float32 where
    the sound lies. Raises ``MediaError`` for no channel, for a rate that is not positive, and when the clip is shorter
    than half a window (513 samples at 16 kHz).
    """
    config = encoder.config.mel
    waveform = audio.waveform if audio.waveform.ndim == 3 else audio.waveform[None]
    waveform = resample(to_stereo(waveform.float()), audio.sampling_rate, config.sample_rate)
    return encoder(log_mel(waveform, config))


def decode_audio(latent: Tensor, decoder: AudioDecoder, vocoder: Vocoder) -> Audio:
    """One normalised ``latent`` [1, C, L, F] to sound: float32 [2, samples] at the vocoder's rate.

    ``decoder`` makes the mel picture and ``vocoder`` the waveform. Raises ``ConditioningError`` for a batch of several.
    """
    if latent.shape[0] != 1:
        raise ConditioningError(f"the audio latent has a batch of {latent.shape[0]}, expected 1")
    mel = decoder(latent)
    return Audio(vocoder(mel.float())[0], vocoder.output_sampling_rate)


# Layers ---------------------------------------------------------------------------------------------------------------


NORM_EPS = 1e-6

# Zeros around the picture before the stride-2 convolution: (bins left, bins right, time top, time bottom).
DOWNSAMPLE_PADDING = {
    CausalityAxis.HEIGHT: (0, 1, 2, 0),
    CausalityAxis.WIDTH: (2, 0, 0, 1),
    CausalityAxis.WIDTH_COMPATIBILITY: (1, 0, 0, 1),
    CausalityAxis.NONE: (0, 1, 0, 1),
}


def convolution_padding(kernel_size: int, axis: CausalityAxis) -> tuple[int, int, int, int]:
    """Zeros that keep the size: all in front on the causal axis, split on the other."""
    total = kernel_size - 1
    causal, split = (total, 0), (total // 2, total - total // 2)
    time = causal if axis is CausalityAxis.HEIGHT else split
    bins = causal if axis in (CausalityAxis.WIDTH, CausalityAxis.WIDTH_COMPATIBILITY) else split
    return *bins, *time


class AxisCausalConv2d(nn.Module):
    """A convolution that sees only the past of the causal axis; size unchanged. Tensors: `conv.{weight, bias}`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, axis: CausalityAxis) -> None:
        super().__init__()
        self.padding = convolution_padding(kernel_size, axis)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding) if any(self.padding) else x)


class PixelNorm(nn.Module):
    """Divide each position by the root mean square of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(dim=1, keepdim=True) + NORM_EPS).sqrt()


def norm(channels: int, config: AudioVaeConfig) -> nn.Module:
    return PixelNorm() if config.norm_type == "pixel" else nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """Two convolutions around a shortcut: [B, in, T, F] -> [B, out, T, F].

    Tensors: `conv1.conv`, `conv2.conv`, `nin_shortcut.conv` where the width changes, `norm1`, `norm2` with group norm.
    """

    def __init__(self, in_channels: int, out_channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.norm1 = norm(in_channels, config)
        self.conv1 = AxisCausalConv2d(in_channels, out_channels, 3, config.causality_axis)
        self.norm2 = norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = AxisCausalConv2d(out_channels, out_channels, 3, config.causality_axis)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = AxisCausalConv2d(in_channels, out_channels, 1, config.causality_axis)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.nin_shortcut(x) + hidden


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, plus x. Tensors: `q`, `k`, `v`, `proj_out`, [`norm`]."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.norm = norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        # [B, C, T, F] -> [B, 1, T*F, C]
        q, k, v = (part(hidden).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve both axes: a stride-2 convolution, or 2x2 averages. Tensors: `conv.{weight, bias}`."""

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.padding = DOWNSAMPLE_PADDING[config.causality_axis]
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if config.resamp_with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Double both axes, less the first row of the causal one: T -> 2T-1 (height) or F -> 2F-1 (width).

    Tensors: `conv.conv.{weight, bias}`.
    """

    def __init__(self, channels: int, config: AudioVaeConfig) -> None:
        super().__init__()
        self.axis = config.causality_axis
        self.conv = AxisCausalConv2d(channels, channels, 3, config.causality_axis)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if self.axis is CausalityAxis.HEIGHT:
            return x[:, :, 1:]
        return x[:, :, :, 1:] if self.axis is CausalityAxis.WIDTH else x


class TokenStatistics(PerChannelStatistics):
    """Mean and deviation of each token channel: [C*F], entry c*F + f."""

    def statistic(self, name: str, like: Tensor) -> Tensor:
        """[C, 1, F] in the latent's dtype."""
        channels, bins, stored = like.shape[1], like.shape[3], self.get_buffer(name)
        if channels * bins != stored.numel():
            expected = f"{stored.numel()} channels * bins"
            raise ConfigError(f"the audio latent has {channels} channels of {bins} bins, expected {expected}")
        return stored.to(like).view(channels, 1, bins)
