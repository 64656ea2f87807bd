"""A long clip window by window: what each begins with, what of it is final, and how that is decoded.

::

    last latents of window n, its frame 8s --> window n + 1 --joined--> final latents --decoded--> frames, sound

Video latent s > 0 stands for eight frames, the first one of a window for a single frame. So a window that starts at
latent s begins with frame 8s, decoded and encoded anew; from the next latent on its grid is the clip's own, and the
rest of what it shares is taken over as it is. The window before delivers latent s.

A piece is decoded with latents around it that are not delivered, more on the left, whose first is read as one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from ltx_core.components.joining import adain, crossfade, join_latents, overlap_correlation
from ltx_core.components.strength import ORDERS, strength_over_overlap
from ltx_core.components.windows import FRAMES_PER_LATENT
from ltx_core.types import Audio
from ltx_pipelines.planning.plan import ImageCondition, LongClip, Plan, StagePlan
from ltx_pipelines.running.kept import on_host
from ltx_pipelines.running.stage_inputs import Continuation, StageResult

LEFT, RIGHT = 4, 3  # latent frames decoded around a piece
LEFT_TOKENS, RIGHT_TOKENS = 25, 10  # audio tokens
MEL_RATE = 100  # mel frames a second; the first token decodes to one, each other to four
FADE, FADE_OUT = 0.01, 0.005  # seconds of the cross-fade between pieces of sound, and of its end


@dataclass(frozen=True)
class Piece:
    """Part of the whole clip that follows from a window, as half-open intervals."""

    latents: tuple[int, int]  # decoded
    frames: tuple[int, int]  # delivered
    picture: int | None = None  # the pixel frame that the next window begins with
    tokens: tuple[int, int] = (0, 0)  # decoded
    heard: tuple[int, int] = (0, 0)  # delivered, in tokens


@dataclass(frozen=True)
class LongState:
    """All that the rest of a long clip follows from, between two windows."""

    done: int = 0  # windows
    samples: int = 0  # of sound that were delivered
    video: Tensor | None = None  # [1, C, k, h, w]: the last latents
    audio: Tensor | None = None  # [1, C, t, M]: the last tokens
    picture: Tensor | None = None  # [1, C, 1, h, w]: what the next window begins with
    anchor: Tensor | None = None  # [1, C, 1, h, w]: shown to every window before time 0
    reference: Tensor | None = None  # [1, C, W, h, w]: the first window, whose statistics others are moved to
    tail: Tensor | None = None  # [channels, n]: sound that is faded into the next piece

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def pieces(stage: StagePlan) -> list[Piece]:
    """Parts delivered after each window of a stage."""
    found: list[Piece] = []
    done = heard = 0
    for window, after in zip_longest(stage.windows, stage.windows[1:]):
        end = ready = window.last // FRAMES_PER_LATENT + 1
        last = window.tokens[1] if window.tokens else 0
        ready_tokens, begin = last, done
        if after is not None:
            following = after.first // FRAMES_PER_LATENT
            ready, begin = max(min(following + 1, end - RIGHT), done), min(done, following)
            ready_tokens = max(min(after.tokens[0] + 1, last - RIGHT_TOKENS), heard) if after.tokens else 0
        found.append(
            Piece(
                (max(begin - LEFT, 0), end),
                (first_frame(done), min(first_frame(ready), stage.shown.frames)),
                None if after is None else after.first,
                (max(heard - LEFT_TOKENS, 0), last),
                (heard, ready_tokens),
            )
        )
        done, heard = ready, ready_tokens
    return found


def first_frame(latent: int) -> int:
    """The first pixel frame of a latent frame."""
    return FRAMES_PER_LATENT * latent - 7 if latent else 0


def first_kept(stage: StagePlan, number: int) -> tuple[int, int]:
    """The first latent frame and the first audio token that window ``number`` and its piece need."""
    piece, window = pieces(stage)[number], stage.windows[number]
    token = min(piece.tokens[0], window.tokens[0]) if window.tokens else 0
    return min(piece.latents[0], window.first // FRAMES_PER_LATENT), token


def prompt_of(plan: Plan, number: int) -> str:
    """The prompt of the scene in which the middle of a window's new part lies."""
    assert plan.long is not None
    window = plan.stages[0].windows[number]
    middle = (window.first_new + window.last) / 2
    return [scene.prompt for scene in plan.long.scenes if scene.start <= middle][-1]


def continuation(plan: Plan, number: int, state: LongState) -> Continuation:
    """Start of a window: from the window before, and the anchor."""
    stage, long = plan.stages[0], plan.long
    assert long is not None
    if number == 0 or state.video is None or state.picture is None:
        return Continuation(anchor=state.anchor)
    window, (latent, token) = stage.windows[number], first_kept(stage, number)
    rest = state.video[:, :, window.first // FRAMES_PER_LATENT + 1 - latent :]
    latents = {"video": torch.cat((state.picture, rest), dim=2)}
    if state.audio is not None and window.tokens is not None:
        latents["audio"] = state.audio[:, :, window.tokens[0] - token :]
    latents = {name: shared for name, shared in latents.items() if shared.shape[2]}
    strengths = {name: overlap_strengths(long, shared.shape[2]) for name, shared in latents.items()}
    return Continuation(latents, strengths, state.anchor)


def overlap_strengths(long: LongClip, count: int) -> tuple[float, ...]:
    """Strength of each latent frame that two windows share; the first one is always held."""
    order = ORDERS.get(long.overlap_curve)
    strength = long.overlap_strength
    falling = [strength] * count if order is None else strength_over_overlap(count, strength, order=order)
    return (1.0, *falling[1:])


def join(plan: Plan, number: int, state: LongState, result: StageResult) -> LongState:
    """The state with a window's latents behind those before it, blended where both have some."""
    stage, long = plan.stages[0], plan.long
    assert long is not None
    video, audio = result["video"], result.get("audio")
    if number == 0 or state.video is None:
        anchor = video[:, :, :1] if long.anchor == "first" else state.anchor
        return replace(state, video=video, audio=audio, anchor=anchor, reference=video if long.adain else None)
    window, (_, token) = stage.windows[number], first_kept(stage, number)
    if state.reference is not None:
        held = sum(strength == 1 for strength in overlap_strengths(long, window.shared))
        moved = adain(video, state.reference, long.adain)
        video = torch.cat((video[:, :, :held], moved[:, :, held:]), dim=2)
    video = join_latents(state.video, video, window.shared, ramp="smoothstep")
    if audio is not None and state.audio is not None and window.tokens is not None:
        shared = token + state.audio.shape[2] - window.tokens[0]
        audio = join_latents(state.audio, audio, shared, min(shared, 1), ramp="smoothstep")
    return replace(state, video=video, audio=audio)


def anchor_image(plan: Plan) -> ImageCondition | None:
    """The picture that every window sees, where it is a file."""
    anchor = None if plan.long is None else plan.long.anchor
    return None if anchor in (None, "first") else ImageCondition(str(anchor))


def latents_of(state: LongState) -> dict[str, Tensor]:
    """By stream, video first."""
    return {name: latent for name in ("video", "audio") if (latent := getattr(state, name)) is not None}


def to_decode(plan: Plan, number: int, state: LongState) -> dict[str, Tensor]:
    """The latents of a window's piece with what is decoded around it."""
    assert state.video is not None
    piece, (latent, token) = pieces(plan.stages[0])[number], first_kept(plan.stages[0], number)
    latents = {"video": state.video[:, :, piece.latents[0] - latent :]}
    if state.audio is not None:
        latents["audio"] = state.audio[:, :, piece.tokens[0] - token :]
    return latents


def after(plan: Plan, number: int, state: LongState, picture: Tensor | None) -> LongState:
    """State for the next window, and no more. Tensors are copies, so that nothing else stays alive."""
    stage = plan.stages[0]
    if number + 1 == len(stage.windows):
        return LongState(number + 1, state.samples)
    now, following = first_kept(stage, number), first_kept(stage, number + 1)
    tensors = state.tensors() | ({} if picture is None else {"picture": picture})
    for name, origin, start in zip(("video", "audio"), now, following, strict=True):
        if name in tensors:
            tensors[name] = tensors[name][:, :, start - origin :]
    own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return LongState(number + 1, state.samples, **own)


class PieceFrames:
    """The frames of a piece, of chunks ``[f, H, W, 3]`` of what is decoded, each cut; they can be read once.

    ``picture`` is the whole frame that the next window begins with, as soon as it was decoded.
    """

    def __init__(self, chunks: Iterator[Tensor], piece: Piece, cut: Callable[[Tensor], Tensor]) -> None:
        self._chunks, self._piece, self._cut = chunks, piece, cut
        self._at = FRAMES_PER_LATENT * piece.latents[0]  # the first latent frame is read as one pixel frame
        self.picture: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of frames."""
        return self._piece.frames[1] - self._piece.frames[0]

    def __iter__(self) -> Iterator[Tensor]:
        first, last = self._piece.frames
        for chunk in self._chunks:
            start, self._at = self._at, self._at + len(chunk)
            if self._piece.picture is not None and start <= self._piece.picture < self._at:
                self.picture = chunk[self._piece.picture - start].clone()
            if len(part := chunk[max(first - start, 0) : max(last - start, 0)]):
                yield self._cut(part)

    def next_picture(self) -> Tensor | None:
        """The picture, decoding as far as it stands where nobody has read the frames."""
        frames = iter(self)
        while self._piece.picture is not None and self.picture is None:
            next(frames, None)
        return self.picture


def piece_of_sound(plan: Plan, piece: Piece, state: LongState, sound: Audio) -> tuple[Tensor, LongState]:
    """The samples ``[channels, S]`` that a piece delivers of what its tokens were decoded to, and the state behind it.

    Where it begins it is faded in over what the piece before went on with. The last one ends with the picture's last
    sample: what the tokens lack of it, at most 0.05 s, is silent behind a short fade.
    """
    rate, shape = sound.sampling_rate, plan.shape
    wave = on_host(sound.waveform)
    wave = wave[:, sample_of(piece.heard[0], rate) - round(4 * piece.tokens[0] * rate / MEL_RATE) :]
    fade, is_last = round(FADE * rate), piece.picture is None
    if state.tail is not None:
        alike = overlap_correlation(state.tail, wave[:, :fade])
        wave = crossfade(state.tail, wave, fade, "matched", alike)
    if not is_last:
        length = sample_of(piece.heard[1], rate) - sample_of(piece.heard[0], rate)
        tail = wave[:, length : length + fade].clone()
        return wave[:, :length], replace(state, tail=tail, samples=state.samples + length)
    length = round(Fraction(shape.frames) / Fraction(shape.fps) * rate) - state.samples
    if (missing := length - wave.shape[1]) > 0:
        out = min(round(FADE_OUT * rate), wave.shape[1])
        wave[:, wave.shape[1] - out :] *= torch.linspace(1, 0, out)
        wave = F.pad(wave, (0, missing))
    return wave[:, :length], replace(state, tail=None, samples=state.samples + length)


def sample_of(token: int, rate: int) -> int:
    """The first sample of an audio token."""
    return round(max(4 * token - 3, 0) * rate / MEL_RATE)
