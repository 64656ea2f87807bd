"""Metrics say nothing where nothing is wrong, and find what is planted."""

from __future__ import annotations

import math

import pytest
import torch
from tests.motion import global_motion

from ltx_core.errors import ConfigError
from ltx_core.types import Audio
from ltx_media.metrics import (
    coherence,
    drift,
    level_step,
    optical_flow,
    psnr,
    seam_energy,
    sound_jump,
    warp_error,
)


def texture(shift_x: float = 0.0, shift_y: float = 0.0) -> torch.Tensor:
    v, u = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    x, y = u - shift_x, v - shift_y
    return (0.5 + 0.25 * torch.sin(0.31 * x + 0.11 * y) + 0.25 * torch.cos(0.23 * y - 0.17 * x))[None]


def test_a_seam_is_found_where_it_is() -> None:
    frames = texture().clone()
    assert seam_energy(frames, 40) < 1.3
    frames[:, :, 40:] += 0.3
    assert seam_energy(frames, 40) > 3
    with pytest.raises(ConfigError, match="seam is at 2"):
        seam_energy(frames, 2)


def test_a_moved_texture_has_no_warp_error_and_a_cut_has() -> None:
    flow = torch.stack((torch.full((64, 80), 3.0), torch.full((64, 80), -2.0)))
    moved = warp_error(texture(), texture(3, -2), flow, -flow)
    cut = warp_error(texture(), 1 - texture(3, -2), flow, -flow)
    assert moved.error < 1e-5
    assert moved.valid > 0.9
    assert cut.error > 0.1


@pytest.mark.parametrize("shift", [(3.0, -2.0), (0.0, 0.0), (-6.5, 4.25)])
def test_global_motion_is_recovered(shift: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.nn.functional.avg_pool2d(torch.rand(1, 1, 70, 90, generator=generator), 5, 1, 2)[0]
    spectrum = torch.fft.rfft2(noise[0])
    fy, fx = torch.fft.fftfreq(70)[:, None], torch.fft.rfftfreq(90)[None]
    moved = torch.fft.irfft2(spectrum * torch.exp(-2j * math.pi * (fx * shift[0] + fy * shift[1])), s=(70, 90))[None]
    x, y = global_motion(noise, moved)
    assert (x, y) == pytest.approx(shift, abs=0.3)


def test_a_jump_in_sound_is_heard() -> None:
    t = torch.arange(4800) / 24000
    tone = torch.sin(2 * math.pi * 220 * t)
    assert sound_jump(tone, 2400, 24000) < 2
    broken = torch.where(t < 0.1, tone, -tone)
    broken[2400:] += 0.5
    assert sound_jump(broken, 2400, 24000) > 4
    assert level_step(torch.where(t < 0.1, tone, 2 * tone), 2400, 24000) == pytest.approx(6.02, abs=0.1)


def test_drift_grows_with_what_drifts() -> None:
    latents = torch.randn(1, 4, 12, 24, 24, generator=torch.Generator().manual_seed(0))
    drifting = latents * torch.linspace(1, 2, 12)[:, None, None]
    windows = [(0, 4), (4, 8), (8, 12)]
    assert drift(drifting, windows).log_std_slope > 3 * abs(drift(latents, windows).log_std_slope)
    assert drift(latents, windows[:1]).mean_slope == 0


def test_psnr_of_equal_clips_is_infinite() -> None:
    assert psnr(texture(), texture()) == math.inf
    assert psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20)


def stage(frames: int = 40) -> list[torch.Tensor]:
    """A texture that moves by three pixels a frame, uint8 ``[H, W, 3]``."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 31, generator=generator), (48, 184), mode="bicubic")
    picture = (wide[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return [picture[:, 3 * number : 3 * number + 64] for number in range(frames)]


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-8, 5)])
def test_flow_follows_a_moved_texture(shift: tuple[int, int]) -> None:
    x, y = shift
    generator = torch.Generator().manual_seed(0)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 24, generator=generator), (120, 144), mode="bicubic")[0]
    flow = optical_flow(wide[:, 20:100, 20:120], wide[:, 20 - y : 100 - y, 20 - x : 120 - x])
    assert flow.flatten(1).median(dim=1).values.tolist() == pytest.approx(shift, abs=0.3)


def test_a_clip_that_hangs_together_and_one_that_does_not() -> None:
    t = torch.arange(16000) / 16000
    sound = Audio(torch.sin(2 * math.pi * 220 * t).expand(2, -1) * 0.3, 16000)
    smooth = stage()
    good = coherence(lambda: smooth, 25.0, sound, (20,))
    assert good.worst.change < 1.3 and [seam.frame for seam in good.seams] == [20]
    assert all(seam.warp_change < 2 and seam.warp < 0.02 for seam in good.seams), good.seams
    assert 0.1 < good.seams[0].above < 0.9
    assert good.sound_jump is not None and good.sound_jump < 4
    cut = [*smooth[:20], *(frame.flip(1) for frame in smooth[20:])]
    torn = sound.waveform.clone()
    torn[:, 8000:] += 0.4
    bad = coherence(lambda: cut, 25.0, Audio(torn, 16000), (20,))
    assert bad.worst.frame == 20 and bad.worst.change > 1.5 and bad.seams[0].warp_change > 5
    assert bad.seams[0].above == 0
    assert bad.sound_jump is not None and bad.sound_jump > 4 and bad.sound_at == pytest.approx(0.5, abs=0.002)


def test_colours_that_drift_are_told_by_the_second() -> None:
    still = [torch.full((8, 8, 3), 100, dtype=torch.uint8) for _ in range(50)]
    assert coherence(lambda: still, 25.0).luma == pytest.approx(0)
    brighter = [frame + number for number, frame in enumerate(still)]
    assert coherence(lambda: brighter, 25.0).luma == pytest.approx(25 / 255, rel=1e-3)
    redder = [frame + torch.tensor([number, 0, 0], dtype=torch.uint8) for number, frame in enumerate(still)]
    assert coherence(lambda: redder, 25.0).saturation == pytest.approx(25 / 255, rel=1e-3)
