"""Weaken the attention between the video and the tokens an item appends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ltx_core.conditioning.item import ConditioningItem
from ltx_core.conditioning.mask_utils import AttentionStrength, update_attention_mask
from ltx_core.conditioning.tools import LatentTools
from ltx_core.types import LatentState


@dataclass(frozen=True)
class ConditioningItemAttentionStrengthWrapper:
    """Applies ``conditioning`` with ``attention_mask``: a strength in [0, 1], or one per appended token.

    Tokens appended earlier and the new ones do not see each other. An item that appends nothing is left as it is.
    """

    conditioning: ConditioningItem
    attention_mask: AttentionStrength

    def apply_to(self, latent_state: LatentState, latent_tools: LatentTools[Any]) -> LatentState:
        result = self.conditioning.apply_to(latent_state, latent_tools)
        num_new = result.latent.shape[1] - latent_state.latent.shape[1]
        if num_new == 0:
            return result
        mask = update_attention_mask(latent_state, self.attention_mask, latent_tools.token_count, num_new)
        return replace(result, attention_mask=mask)
