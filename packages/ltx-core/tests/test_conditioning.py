"""Latent tools and conditioning items: what they change, what they leave, what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning import (
    AudioConditionByReferenceLatent,
    ConditioningItem,
    ConditioningItemAttentionStrengthWrapper,
    TemporalRegionMask,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByMask,
    VideoConditionByReferenceLatent,
    VideoGeneratedKeyframeSlots,
)
from ltx_core.conditioning.mask_utils import downsample_mask_video_to_latent
from ltx_core.conditioning.tools import AudioLatentTools, VideoLatentTools
from ltx_core.conditioning.types.reference_cond import before_the_start
from ltx_core.errors import ConditioningError
from ltx_core.types import AudioLatentShape, LatentState, VideoLatentShape

SHAPE = VideoLatentShape(1, 4, 3, 2, 3)  # 18 tokens, 6 a frame, 17 pixel frames
CPU = torch.device("cpu")


def video_tools(shape: VideoLatentShape = SHAPE) -> VideoLatentTools:
    return VideoLatentTools(VideoLatentPatchifier(patch_size=1), shape, fps=25.0)


def audio_tools(frames: int = 10) -> AudioLatentTools:
    return AudioLatentTools(AudioPatchifier(patch_size=1), AudioLatentShape(1, 2, frames, 3))


def initial(dtype: torch.dtype = torch.float32) -> LatentState:
    return video_tools().create_initial_state(CPU, dtype)


def content(frames: int = 1, height: int = 2, width: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(3)).to(dtype)


def apply(state: LatentState, *items: ConditioningItem) -> LatentState:
    for item in items:
        state = item.apply_to(state, video_tools())
    return state


# --- tools


@given(st.builds(VideoLatentShape, *[st.integers(1, 3)] * 5))
def test_video_states_round_trip(shape: VideoLatentShape) -> None:
    tools, latent = video_tools(shape), torch.randn(shape)
    state = tools.create_initial_state(CPU, torch.float32, initial_latent=latent)
    assert state.latent.shape == (shape.batch, shape.token_count, shape.channels)
    assert state.positions.shape == (shape.batch, 3, shape.token_count, 2)
    assert state.keyframes_mask is not None
    assert state.keyframes_mask.sum() == shape.batch * shape.height * shape.width
    back = tools.unpatchify(state)
    assert torch.equal(back.latent, latent) and back.denoise_mask.shape == shape.mask_shape
    assert torch.equal(tools.patchify(back).latent, state.latent)


def test_audio_states_round_trip() -> None:
    tools, latent = audio_tools(), torch.randn(1, 2, 10, 3)
    state = tools.create_initial_state(CPU, torch.bfloat16, initial_latent=latent)
    assert state.latent.dtype == torch.float32, "an initial latent is used as it is"
    assert state.denoise_mask.shape == (1, 10, 1) and state.keyframes_mask is None
    assert torch.equal(tools.unpatchify(state).latent, latent)


def test_a_blank_state_is_zeros_to_be_denoised() -> None:
    state = initial(torch.bfloat16)
    assert state.latent.dtype == torch.bfloat16 and not state.latent.any() and not state.clean_latent.any()
    assert state.denoise_mask.dtype == torch.float32 and bool((state.denoise_mask == 1).all())
    assert state.positions[0, 0, 0].tolist() == [0, pytest.approx(1 / 25)]


def test_tools_refuse_other_shapes() -> None:
    with pytest.raises(ConditioningError, match="expected"):
        video_tools().create_initial_state(CPU, torch.float32, initial_latent=torch.zeros(1, 4, 2, 2, 3))
    longer = apply(initial(), VideoConditionByKeyframeIndex(content(), 8))
    with pytest.raises(ConditioningError, match="24 tokens, expected the target's 18"):
        video_tools().unpatchify(longer)


def test_states_can_be_copied() -> None:
    state = initial()
    copy = state.clone()
    copy.latent.fill_(1)
    assert not state.latent.any() and copy.frozen == state.frozen


def test_clearing_restores_the_target() -> None:
    keyframe = ConditioningItemAttentionStrengthWrapper(VideoConditionByKeyframeIndex(content(), 8), 0.5)
    state = apply(initial(), VideoConditionByLatentIndex(content(), 1.0, 0), keyframe)
    cleared = video_tools().clear_conditioning(replace(state, frozen=True))
    assert cleared.latent.shape[1] == SHAPE.token_count and cleared.positions.shape[2] == SHAPE.token_count
    assert cleared.attention_mask is None and cleared.keyframes_mask is None and cleared.frozen
    assert bool((cleared.denoise_mask == 1).all())


# --- items in place


@given(st.integers(0, 2), st.floats(0, 1))
def test_latent_index_changes_only_its_frame(index: int, strength: float) -> None:
    state = apply(initial(), VideoConditionByLatentIndex(content(), strength, index))
    span = slice(index * 6, index * 6 + 6)
    assert torch.equal(state.clean_latent[:, span], VideoLatentPatchifier(1).patchify(content()))
    assert state.denoise_mask[0, span].flatten().tolist() == pytest.approx([1 - strength] * 6)
    assert state.denoise_mask.sum() == pytest.approx(18 - 6 * strength, abs=1e-5)
    assert not state.latent.any(), "noisy tokens wait for the noiser"
    assert not initial().clean_latent.any()


def test_held_content_comes_through_the_noiser() -> None:
    state = apply(initial(torch.bfloat16), VideoConditionByLatentIndex(content(dtype=torch.bfloat16), 1.0, 0))
    noised = GaussianNoiser(torch.Generator().manual_seed(0))(state)
    assert torch.equal(noised.latent[:, :6], state.clean_latent[:, :6])
    assert noised.latent[:, 6:].float().std() == pytest.approx(1, abs=0.4)


@given(st.floats(0, 1))
def test_masks_blend(value: float) -> None:
    mask = torch.zeros(1, 3, 2, 3)
    mask[:, 1] = value
    state = apply(initial(), VideoConditionByMask(content(3), mask, strength=1.0))
    tokens = VideoLatentPatchifier(1).patchify(content(3))
    assert torch.allclose(state.clean_latent[:, 6:12], value * tokens[:, 6:12], atol=1e-6)
    assert not state.clean_latent[:, :6].any() and state.denoise_mask[0, 8, 0] == pytest.approx(1 - value, abs=1e-6)


def test_a_region_of_time() -> None:
    region = TemporalRegionMask(start_time=0.1, end_time=0.3, fps=25.0)
    audio = audio_tools()
    state = region.apply_to(audio.create_initial_state(CPU, torch.float32), audio)
    spans = state.positions[0, 0]
    inside = [bool(end > 0.1 and start < 0.3) for start, end in spans]
    assert 0 < sum(inside) < 10 and state.denoise_mask.flatten().bool().tolist() == inside
    video = apply(initial(), region).denoise_mask.flatten()  # frame spans [0, .04) [.04, .36) [.36, .68)
    assert video.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 6


# --- items that append


@pytest.mark.parametrize("frame_idx", [0, 5, 16])
def test_a_keyframe_is_appended_at_its_time(frame_idx: int) -> None:
    state = apply(initial(), VideoConditionByKeyframeIndex(content(), frame_idx, strength=0.75))
    assert state.latent.shape[1] == 24 and not state.latent[:, 18:].any()
    assert state.positions[0, 0, 18:].flatten().tolist() == pytest.approx([frame_idx / 25, (frame_idx + 1) / 25] * 6)
    assert torch.equal(state.positions[:, 1:, 18:], state.positions[:, 1:, :6])
    assert state.denoise_mask[0, 18:].flatten().tolist() == [0.25] * 6
    assert state.keyframes_mask is not None and not state.keyframes_mask[:, 18:].any()
    assert state.attention_mask is None


def test_appended_strength_takes_the_precision_of_the_content() -> None:
    item = VideoConditionByKeyframeIndex(content(dtype=torch.bfloat16), 8, strength=0.9)
    state = apply(initial(torch.bfloat16), item)
    assert state.denoise_mask[0, 18, 0].item() == torch.tensor(0.1, dtype=torch.bfloat16).item()
    assert state.latent.dtype == torch.bfloat16 and state.denoise_mask.dtype == torch.float32


def test_a_full_reference_lies_on_the_target() -> None:
    state = apply(initial(), VideoConditionByReferenceLatent(content(3)))
    assert torch.equal(state.positions[:, :, 18:], state.positions[:, :, :18])


def test_a_small_reference_is_stretched_over_the_target() -> None:
    tools = video_tools(VideoLatentShape(1, 4, 9, 4, 6))
    item = VideoConditionByReferenceLatent(content(3), downscale_factor=2, temporal_scale_factor=4)
    state = item.apply_to(tools.create_initial_state(CPU, torch.float32), tools)
    target, reference = state.positions[0, :, :216], state.positions[0, :, 216:]
    assert torch.allclose(reference[:, :, 1].amax(dim=1), target[:, :, 1].amax(dim=1))
    assert reference.min() == 0


def test_a_sound_before_the_start() -> None:
    tools = audio_tools()
    state = tools.create_initial_state(CPU, torch.float32)
    positions = before_the_start(state.positions[:, :, :4])
    after = AudioConditionByReferenceLatent(state.latent[:, :4], positions, 1.0).apply_to(state, tools)
    assert after.positions[0, 0, -1, 1] == pytest.approx(-0.04)
    assert after.latent.shape[1] == 14 and not after.denoise_mask[:, 10:].any()


def test_keyframe_slots_come_back_as_latents() -> None:
    slots = VideoGeneratedKeyframeSlots([4, 12], initial_keyframes=content(2))
    state = apply(initial(), slots, VideoConditionByKeyframeIndex(content(), 8))
    assert state.keyframes_mask is not None
    assert state.keyframes_mask[0, 18:].flatten().tolist() == [1.0] * 12 + [0.0] * 6
    assert bool((state.denoise_mask[:, 18:30] == 1).all()) and not state.clean_latent[:, 18:30].any()
    assert state.positions[0, 0, 24].tolist() == pytest.approx([12 / 25, 13 / 25])
    cleared = video_tools().clear_conditioning(state)
    assert cleared.generated_keyframes is not None
    assert torch.equal(cleared.generated_keyframes, content(2))
    assert cleared.latent.shape[1] == 18


# --- attention


def test_attention_strength_reaches_only_the_target() -> None:
    first = VideoConditionByKeyframeIndex(content(), 4)
    second = ConditioningItemAttentionStrengthWrapper(VideoConditionByKeyframeIndex(content(), 8), 0.5)
    third = VideoConditionByKeyframeIndex(content(), 12)
    mask = apply(initial(), first, second, third).attention_mask
    assert mask is not None and mask.shape == (1, 36, 36)
    assert torch.equal(mask, mask.transpose(1, 2))
    blocks = [slice(0, 18), slice(18, 24), slice(24, 30), slice(30, 36)]
    expected = [[1, 1, 0.5, 1], [1, 1, 0, 0], [0.5, 0, 1, 0], [1, 0, 0, 1]]
    for rows, values in zip(blocks, expected, strict=True):
        for columns, value in zip(blocks, values, strict=True):
            assert bool((mask[0, rows, columns] == value).all())


@pytest.mark.parametrize("shape", [(), (6,), (1, 6)])
def test_attention_strength_per_token(shape: tuple[int, ...]) -> None:
    item = VideoConditionByKeyframeIndex(content(), 8)
    wrapped = ConditioningItemAttentionStrengthWrapper(item, torch.full(shape, 0.25))
    mask = apply(initial(), wrapped).attention_mask
    assert mask is not None and bool((mask[0, :18, 18:] == 0.25).all())


def test_an_item_that_appends_nothing_makes_no_mask() -> None:
    item = ConditioningItemAttentionStrengthWrapper(VideoConditionByLatentIndex(content(), 1.0, 0), 0.5)
    assert apply(initial(), item).attention_mask is None


def test_mask_videos_shrink_to_tokens() -> None:
    mask = torch.zeros(1, 1, 17, 64, 96)
    mask[:, :, 0], mask[:, :, 9:13] = 1, 1
    weights = downsample_mask_video_to_latent(mask, SHAPE)
    assert weights.tolist() == [[1.0] * 6 + [0.0] * 6 + [0.5] * 6]
    with pytest.raises(ConditioningError, match="18 frames"):
        downsample_mask_video_to_latent(torch.zeros(1, 1, 18, 64, 96), SHAPE)


# --- refusals


@pytest.mark.parametrize(
    "item",
    [
        VideoConditionByLatentIndex(content(1, 2, 2), 1.0, 0),
        VideoConditionByLatentIndex(content(2), 1.0, 2),
        VideoConditionByLatentIndex(content(), 1.5, 0),
        VideoConditionByKeyframeIndex(torch.zeros(1, 3, 1, 2, 3), 0),
        VideoConditionByReferenceLatent(content(), downscale_factor=0),
        VideoConditionByMask(content(3), torch.zeros(1, 2, 2, 3)),
        VideoGeneratedKeyframeSlots([]),
        VideoGeneratedKeyframeSlots([4, 4]),
        VideoGeneratedKeyframeSlots([17]),
        VideoGeneratedKeyframeSlots([4], initial_keyframes=content(2)),
        ConditioningItemAttentionStrengthWrapper(VideoConditionByKeyframeIndex(content(), 8), torch.ones(5)),
    ],
)
def test_items_that_do_not_fit_are_refused(item: ConditioningItem) -> None:
    with pytest.raises(ConditioningError, match="expected"):
        apply(initial(), item)


@pytest.mark.parametrize(
    "late",
    [
        VideoConditionByMask(content(3), torch.ones(1, 3, 2, 3)),
        TemporalRegionMask(0.0, 1.0, 25.0),
        VideoGeneratedKeyframeSlots([4]),
    ],
)
def test_items_that_come_too_late_are_refused(late: ConditioningItem) -> None:
    with pytest.raises(ConditioningError):
        apply(initial(), VideoGeneratedKeyframeSlots([2]), late)
