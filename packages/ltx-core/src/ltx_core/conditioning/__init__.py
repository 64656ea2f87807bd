"""Conditioning: latent tools, and items that change a latent state (``LatentState -> LatentState``)."""

from ltx_core.conditioning.item import ConditioningItem
from ltx_core.conditioning.types.attention_strength_wrapper import ConditioningItemAttentionStrengthWrapper
from ltx_core.conditioning.types.keyframe_cond import VideoConditionByKeyframeIndex
from ltx_core.conditioning.types.keyframe_slots import VideoGeneratedKeyframeSlots
from ltx_core.conditioning.types.latent_cond import VideoConditionByLatentIndex
from ltx_core.conditioning.types.mask_cond import VideoConditionByMask
from ltx_core.conditioning.types.noise_mask_cond import TemporalRegionMask
from ltx_core.conditioning.types.reference_cond import AudioConditionByReferenceLatent, VideoConditionByReferenceLatent
from ltx_core.conditioning.types.start_cond import ConditionByStart

__all__ = [
    "AudioConditionByReferenceLatent",
    "ConditionByStart",
    "ConditioningItem",
    "ConditioningItemAttentionStrengthWrapper",
    "TemporalRegionMask",
    "VideoConditionByKeyframeIndex",
    "VideoConditionByLatentIndex",
    "VideoConditionByMask",
    "VideoConditionByReferenceLatent",
    "VideoGeneratedKeyframeSlots",
]
