"""See ``ltx_core.conditioning.types.mask_cond``."""

from ltx_core.conditioning.types.mask_cond import *  # noqa: F403
