"""Colour: RGB to the planes video codecs take, and the log and HLG transfers of HDR pictures.

Sources: ITU-R BT.709 (8-bit planes), BT.2020, BT.2100 (HLG) and BT.2408 (diffuse white), SMPTE ST 2084 (PQ),
IEC 61966-2-1 (sRGB), ARRI LogC3 at EI 800, AMPAS S-2016-001 (ACEScct).
Matrix rows give the output channels; channel axes are named at each function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ltx_core.errors import MediaError

RGB_TO_YCBCR_709 = ((0.2126, 0.7152, 0.0722), (-0.1146, -0.3854, 0.5), (0.5, -0.4542, -0.0458))
RGB_TO_YCBCR_601 = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
RGB_TO_YCBCR = {1: RGB_TO_YCBCR_709, 6: RGB_TO_YCBCR_601}  # by code point of ITU-T H.273
BT2020_LUMA = (0.2627, 0.6780, 0.0593)
BAND = 2**18  # pixels that are converted at once
TRUNCATED = 2**-10  # weights sum to whole codes only up to float rounding: with 0 white would truncate to 234
WHITE_SIGNAL = 0.75  # HLG signal of diffuse white
WHITE_NITS, HLG_PEAK_NITS, PQ_PEAK_NITS = 203.0, 1000.0, 10000.0  # BT.2408: diffuse white; the ends of HLG and PQ
HLG_GAMMA = 1.2  # of a display of that peak
KNEE = 0.75  # linear light up to which tone mapping leaves colours alone


class Primaries(Enum):
    """Meaning of the three channels of linear light."""

    REC709 = "rec709"
    AP1 = "acescg"
    REC2020 = "rec2020"


class HDRColorSpace(Enum):
    """Storage of HDR pictures in EXR files."""

    SRGB_LINEAR = "SRGB_LINEAR"  # linear light, Rec.709 primaries
    ACESCG = "ACESCG"  # linear light, AP1 primaries
    ACESCCT = "ACESCCT"  # ACEScct codes, AP1 primaries

    @property
    def primaries(self) -> Primaries:
        return Primaries.REC709 if self is HDRColorSpace.SRGB_LINEAR else Primaries.AP1


_MATRICES: dict[tuple[Primaries, Primaries], tuple[tuple[float, float, float], ...]] = {
    (Primaries.AP1, Primaries.REC709): (
        (1.70505, -0.62179, -0.08326),
        (-0.13026, 1.1408, -0.01055),
        (-0.024, -0.12897, 1.15297),
    ),
    (Primaries.REC709, Primaries.REC2020): (
        (0.62740389, 0.32928304, 0.04331307),
        (0.06909729, 0.91954040, 0.01136232),
        (0.01639144, 0.08801331, 0.89559525),
    ),
    (Primaries.AP1, Primaries.REC2020): (
        (1.02582475, -0.02005319, -0.00577156),
        (-0.00223437, 1.00458650, -0.00235213),
        (-0.00501335, -0.02529007, 1.03030342),
    ),
}


@cache
def _primaries_matrix(source: Primaries, target: Primaries) -> Tensor:
    if (source, target) in _MATRICES:
        return torch.tensor(_MATRICES[source, target], dtype=torch.float64).float()
    return torch.linalg.inv(torch.tensor(_MATRICES[target, source], dtype=torch.float64)).float()


def convert_primaries(linear: Tensor, source: Primaries, target: Primaries, dim: int = 1) -> Tensor:
    """Linear light with its three channels on axis ``dim``, from one set of primaries to another."""
    if source is target:
        return linear
    matrix = _primaries_matrix(source, target).to(linear.device)
    return (linear.float().movedim(dim, -1) @ matrix.T).movedim(-1, dim)


@dataclass(frozen=True)
class LogCurve:
    """A camera log curve: ``c * log10(a x + b) + d`` from ``cut`` up, ``e x + f`` below, codes held to [0, 1]."""

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float
    cut: float
    primaries: Primaries  # of the light it encodes

    def compress(self, linear: Tensor) -> Tensor:
        """Linear light to codes in [0, 1]."""
        linear = linear.float()
        log = self.c * torch.log10(torch.clamp(self.a * linear + self.b, min=1e-10)) + self.d
        return torch.where(linear >= self.cut, log, self.e * linear + self.f).clamp(0, 1)

    def decompress(self, codes: Tensor) -> Tensor:
        """Codes to linear light; negative light, which has no code of its own, is 0."""
        codes = codes.float().clamp(0, 1)
        light = (10 ** ((codes - self.d) / self.c) - self.b) / self.a
        return torch.where(codes >= self.e * self.cut + self.f, light, (codes - self.f) / self.e).clamp(min=0)

    def working_from(self, linear: Tensor, primaries: Primaries) -> Tensor:
        """Light ``[B, 3, ...]`` of the given primaries to codes."""
        return self.compress(convert_primaries(linear, primaries, self.primaries).clamp(min=0))

    def linear_to(self, codes: Tensor, primaries: Primaries) -> Tensor:
        """Codes ``[B, 3, ...]`` to light of the given primaries."""
        return convert_primaries(self.decompress(codes), self.primaries, primaries)


LOGC3 = LogCurve(5.555556, 0.052272, 0.247190, 0.385537, 5.367655, 0.092809, 0.010591, Primaries.REC709)
ACESCCT = LogCurve(
    a=1.0,
    b=0.0,
    c=1 / (17.52 * math.log10(2)),
    d=9.72 / 17.52,
    e=10.5402377416545,
    f=0.0729055341958355,
    cut=0.0078125,
    primaries=Primaries.AP1,
)


def to_working_codes(values: Tensor, color_space: HDRColorSpace | None, path: str | Path) -> Tensor:
    """HDR values ``[N, 3, ...]`` read from ``path`` as ACEScct codes in [0, 1], which is what HDR checkpoints see."""
    if color_space is None:
        raise MediaError(f"{path}: an HDR picture needs its colour space; expected SRGB_LINEAR, ACESCG or ACESCCT")
    if color_space is HDRColorSpace.ACESCCT:
        return values.float().clamp(0, 1)
    return ACESCCT.working_from(values, color_space.primaries)


def from_working_codes(codes: Tensor, curve: LogCurve, color_space: HDRColorSpace) -> Tensor:
    """Codes ``[..., 3]`` in [0, 1] as an EXR file of a colour space holds them: light from 0 up, or ACEScct codes."""
    if color_space is HDRColorSpace.ACESCCT and curve is ACESCCT:
        return codes.float().clamp(0, 1)
    light = convert_primaries(curve.decompress(codes), curve.primaries, color_space.primaries, dim=-1)
    return ACESCCT.compress(light.clamp(min=0)) if color_space is HDRColorSpace.ACESCCT else light


def rec709_light(values: Tensor, color_space: HDRColorSpace) -> Tensor:
    """Contents of an EXR file of a colour space ``[..., 3]`` as light with Rec.709 primaries."""
    light = ACESCCT.decompress(values) if color_space is HDRColorSpace.ACESCCT else values
    return convert_primaries(light, color_space.primaries, Primaries.REC709, dim=-1)


def rgb_to_i420(frames: Tensor, matrix: int = 1, nudge: float = TRUNCATED) -> Tensor:
    """Frames ``[F, H, W, 3]`` in [0, 1] (floats) or 0..255 (uint8) as limited-range planes, BT.709 or another matrix.

    Returns uint8 ``[F, H * 3 / 2, W]``: Y, then Cb and Cr at half the sides (means over 2 x 2), truncated, or with a
    ``nudge`` of 0.5 rounded. Sides are even.
    """
    count, height, width, _ = frames.shape
    weights = torch.tensor(RGB_TO_YCBCR[matrix], device=frames.device)
    scale = torch.tensor([219.0, 224.0, 224.0], device=frames.device)
    if not frames.is_floating_point():
        scale = scale / 255
    rows = weights * scale[:, None]
    codes = frames.new_empty((count, height * 3 // 2, width), dtype=torch.uint8)
    luma = codes[:, :height]
    chroma = codes[:, height:].view(count, 2, height // 2, width // 2)
    band = max(BAND // (2 * width), 1) * 2
    for top in range(0, height, band):
        rgb = frames[:, top : top + band].float()
        quarter = rgb.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean((2, 4))  # [F, h/2, W/2, 3]
        luma[:, top : top + band] = (rgb @ rows[0] + 16).add_(nudge).clamp_(0, 255)
        both = (quarter @ rows[1:].T + 128).add_(nudge).clamp_(0, 255)
        chroma[:, :, top // 2 : (top + band) // 2] = both.movedim(3, 1)
    return codes


def linear_to_hlg(linear: Tensor, primaries: Primaries, white_signal: float = WHITE_SIGNAL) -> Tensor:
    """Scene-linear light ``[F, H, W, 3]`` as BT.2020 HLG signal ``[F, 3, H, W]``, diffuse white at ``white_signal``.

    Light above white rolls off exponentially, so that every highlight keeps its order below signal 1.
    """
    light = convert_primaries(linear, primaries, Primaries.REC2020, dim=-1).float().movedim(-1, 1)
    light = light.nan_to_num(0.0, posinf=torch.finfo(torch.float32).max).clamp(min=0)
    white = float(_hlg_inverse_oetf(torch.tensor(white_signal, dtype=torch.float64)))
    rolled = 1 - (1 - white) * torch.exp(-white / (1 - white) * (light - 1))
    scene = torch.where(light <= 1, light * white, rolled)
    log = 0.17883277 * torch.log(torch.clamp(12 * scene - 0.28466892, min=1e-10)) + 0.55991073
    return torch.where(scene <= 1 / 12, torch.sqrt(3 * scene), log)


def hlg_to_yuv420p10(signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """HLG signal ``[F, 3, H, W]`` as 10-bit limited-range planes, int32: Y ``[F, H, W]``, Cb, Cr ``[F, H/2, W/2]``."""
    red, green, blue = signal.unbind(1)
    k_red, k_green, k_blue = BT2020_LUMA
    y = k_red * red + k_green * green + k_blue * blue
    planes = [y * 876 + 64]
    for channel, weight in ((blue, k_blue), (red, k_red)):
        difference = (channel - y) / (2 * (1 - weight))
        planes.append(torch.nn.functional.avg_pool2d(difference[:, None], 2)[:, 0] * 896 + 512)
    y10, u10, v10 = (plane.round().clamp(0, 1023).to(torch.int32) for plane in planes)
    return y10, u10, v10


def pq_to_linear(codes: Tensor) -> Tensor:
    """PQ codes in [0, 1] as light, diffuse white at 1."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = codes.float().clamp(0, 1) ** (1 / m2)
    return ((power - c1).clamp(min=0) / (c2 - c3 * power)) ** (1 / m1) * (PQ_PEAK_NITS / WHITE_NITS)


def hlg_to_linear(signal: Tensor) -> Tensor:
    """HLG signal ``[..., 3]`` in [0, 1] as the light of a 1000 cd/m2 display, diffuse white at 1; BT.2020 primaries."""
    scene = _hlg_inverse_oetf(signal.float().clamp(0, 1))
    luminance = (scene @ torch.tensor(BT2020_LUMA)).clamp(min=1e-6)[..., None]
    return scene * luminance ** (HLG_GAMMA - 1) * (HLG_PEAK_NITS / WHITE_NITS)


def srgb_to_linear(codes: Tensor) -> Tensor:
    """sRGB codes in [0, 1] as light."""
    codes = codes.float()
    return torch.where(codes <= 0.04045, codes / 12.92, ((codes.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def tone_map(linear: Tensor) -> Tensor:
    """Light ``[..., 3]`` of Rec.709 primaries, diffuse white at 1, as sRGB codes in [0, 1].

    The largest channel is left alone up to `KNEE` and rolls off exponentially above; hues stay.
    """
    linear = linear.float().clamp(min=0)
    peak = linear.amax(-1, keepdim=True)
    rolled = KNEE + (1 - KNEE) * (1 - torch.exp((KNEE - peak) / (1 - KNEE)))
    light = linear * torch.where(peak > KNEE, rolled / peak.clamp(min=KNEE), 1.0)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _hlg_inverse_oetf(signal: Tensor) -> Tensor:
    return torch.where(signal <= 0.5, signal**2 / 3, (((signal - 0.55991073) / 0.17883277).exp() + 0.28466892) / 12)
