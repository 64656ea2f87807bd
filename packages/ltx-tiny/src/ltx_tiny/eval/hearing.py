"""Sounds of a clip: their kind, pitch and onsets, and how pitch, loudness and place move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

UNKNOWN = "unknown"
RATE = 16000  # Hz; other rates are resampled to this
SILENCE = 0.003  # root mean square, of full scale; one tick a clip has twice as much, the vocoder of nothing 0.0002
QUIET = 0.09  # of the loudest 16 ms
REGISTERS = (300.0, 670.0)  # Hz: low below, high above
TICK_HZ = 1500.0  # ticks are above, knocks and beeps below


@dataclass(frozen=True)
class Hearing:
    """Sounds that were heard; ``moves`` are the tracks of what sounds on, each ``[T]``, at the times ``at``."""

    sound: str
    pitch: str | None  # register, where the kind of sound has one
    pitch_hz: float
    onsets: Array  # seconds
    at: Array  # seconds
    frequency: Array  # Hz
    loudness: Array  # root mean square
    place: Array  # 0 = left, 1 = right


def listen(audio: NDArray[np.float32], rate: int = RATE) -> Hearing:
    """Listen to a waveform ``[2, S]`` in [-1, 1]."""
    audio = resample(np.atleast_2d(np.asarray(audio, dtype=np.float64)), rate)
    if audio.shape[0] == 1:
        audio = np.repeat(audio, 2, axis=0)
    none = np.zeros(0)
    if audio.shape[1] < 1024 or np.sqrt(np.mean(audio**2)) < SILENCE:
        return Hearing("silence", None, 0.0, none, none, none, none, none)
    at, level = envelope(audio)
    onsets = find_onsets(at, level)
    tracks = _tracks(audio)
    if np.mean(level < QUIET * level.max()) > 0.35 and len(onsets):
        sound, hertz = _pulses(audio, at, level, onsets)
        return Hearing(sound, _register(hertz) if sound != "tick" else None, hertz, onsets, *tracks)
    sound, hertz = _held(*tracks)
    return Hearing(sound, _register(hertz) if sound == "tone" else None, hertz, onsets, *tracks)


def resample(audio: Array, rate: int) -> Array:
    """The waveform ``[C, S]`` at ``RATE``, through its spectrum."""
    if rate == RATE:
        return audio
    samples = round(audio.shape[1] * RATE / rate)
    return np.fft.irfft(np.fft.rfft(audio, axis=1), samples, axis=1) * (samples / audio.shape[1])


def envelope(audio: Array, window: int = 256, hop: int = 16) -> tuple[Array, Array]:
    """Times in seconds and the root mean square of both channels around them, in a Hann window of 16 ms."""
    shape = np.hanning(window + 2)[1:-1]
    shape /= shape.sum()
    power = np.pad(np.mean(audio**2, axis=0), window // 2)
    spectrum = np.fft.rfft(power, len(power) + window) * np.fft.rfft(shape, len(power) + window)
    smooth = np.fft.irfft(spectrum, len(power) + window)[window - 1 : window - 1 + audio.shape[1] : hop]
    return np.arange(len(smooth)) * hop / RATE, np.sqrt(np.maximum(smooth, 0.0))


def find_onsets(at: Array, level: Array, apart: float = 0.12) -> Array:
    """Instants at which the level rises steeply, at half its rise in power; seconds."""
    step = at[1] - at[0]
    span = max(round(0.008 / step), 1)
    padded = np.pad(level, (span, span), mode="constant", constant_values=(0.0, level[-1]))
    flux = padded[2 * span :] - padded[: -2 * span]
    found: list[float] = []
    strong = 0.25 * level.max()
    for i in np.argsort(-flux):
        if flux[i] < strong:
            break
        if all(abs(at[i] - other) > apart for other in found):
            found.append(float(at[i]))
    return np.array(sorted(_half_rise(at, level, instant) for instant in found))


def _half_rise(at: Array, level: Array, instant: float) -> float:
    before = (at >= instant - 0.03) & (at <= instant)
    after = (at >= instant) & (at <= instant + 0.03)
    floor, top = np.min(level[before]) ** 2, np.max(level[after]) ** 2
    near = np.flatnonzero((at >= instant - 0.03) & (at <= instant + 0.03) & (level**2 >= (floor + top) / 2))
    i = int(near[0])
    if i == 0:
        return float(at[0])
    low, high = level[i - 1] ** 2, level[i] ** 2
    return float(
        at[i - 1] + (at[i] - at[i - 1]) * np.clip(((floor + top) / 2 - low) / max(high - low, 1e-12), 0.0, 1.0)
    )


def _pulses(audio: Array, at: Array, level: Array, onsets: Array) -> tuple[str, float]:
    """Knock, tick or beep, from how long a pulse is held and how high it is; and its pitch."""
    power = np.zeros(4097)
    held = []
    for onset in onsets:
        first = round((onset + 0.003) * RATE)
        piece = audio[:, first : first + 960]
        if piece.shape[1] < 480 or onset + 0.11 > at[-1]:
            continue
        power += (np.abs(np.fft.rfft(piece * np.hanning(piece.shape[1]), 8192, axis=1)) ** 2).sum(axis=0)
        early = level[(at >= onset) & (at <= onset + 0.04)].max()
        held.append(level[(at >= onset + 0.08) & (at <= onset + 0.11)].mean() / early)
    if not held:
        return UNKNOWN, 0.0
    hertz = _peak(power, RATE / 8192, 80.0)
    if hertz > TICK_HZ:
        return "tick", hertz
    return ("beep" if np.median(held) > 0.5 else "knock"), hertz


def _held(at: Array, frequency: Array, loudness: Array, place: Array) -> tuple[str, float]:
    """Kind and pitch of what sounds on: a glide, a swell, a moving hum or a tone."""
    weight = np.sqrt(loudness) * (loudness > 0.02 * loudness.max())
    octaves = _travel(at, np.log2(frequency), weight)
    decibels = _travel(at, 20.0 * np.log10(loudness + 1e-5), weight)
    aside = _travel(at, place, weight)
    hertz = float(np.median(frequency[weight > 0]))
    if abs(octaves) > 0.8:
        return ("rising glide" if octaves > 0 else "falling glide"), hertz
    if abs(aside) > 0.55:
        return ("hum to the right" if aside > 0 else "hum to the left"), hertz
    if abs(decibels) > 8.0:
        return ("swell" if decibels > 0 else "fade"), hertz
    steady = np.mean(np.abs(np.log2(frequency[weight > 0] / hertz)) < 0.15) > 0.8
    return ("tone" if steady else UNKNOWN), hertz


def _tracks(audio: Array) -> tuple[Array, Array, Array, Array]:
    """Times, strongest frequency, loudness and place every 10 ms, in windows of 64 ms."""
    windows = np.lib.stride_tricks.sliding_window_view(audio, 1024, axis=1)[:, ::160] * np.hanning(1024)
    power = np.abs(np.fft.rfft(windows, 4096, axis=2)) ** 2  # [2, T, 2049]
    at = (np.arange(power.shape[1]) * 160 + 512) / RATE
    frequency = np.array([_peak(frame, RATE / 4096, 80.0) for frame in power.sum(axis=0)])
    left, right = np.sqrt(np.mean(windows**2, axis=2))
    return at, frequency, np.hypot(left, right), np.arctan2(right, left) * (2.0 / np.pi)


def _peak(power: Array, hertz_per_bin: float, lowest: float) -> float:
    """The strongest frequency above ``lowest``, between bins by a parabola through the logarithms."""
    first = max(int(lowest / hertz_per_bin), 1)
    i = first + int(np.argmax(power[first:-1]))
    a, b, c = np.log(power[i - 1 : i + 2] + 1e-20)
    bend = a - 2.0 * b + c
    aside = 0.5 * (a - c) / bend if bend < -1e-12 else 0.0
    return float((i + np.clip(aside, -0.5, 0.5)) * hertz_per_bin)


def _travel(at: Array, values: Array, weight: Array) -> float:
    """Distance that a straight line through the values goes from the first to the last instant."""
    slope = np.polyfit(at, values, 1, w=weight + 1e-6)[0]
    return float(slope * (at[-1] - at[0]))


def _register(hertz: float) -> str:
    return "low" if hertz < REGISTERS[0] else "middle" if hertz < REGISTERS[1] else "high"
