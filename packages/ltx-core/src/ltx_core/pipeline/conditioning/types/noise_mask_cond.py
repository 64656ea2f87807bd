"""See ``ltx_core.conditioning.types.noise_mask_cond``."""

from ltx_core.conditioning.types.noise_mask_cond import *  # noqa: F403
