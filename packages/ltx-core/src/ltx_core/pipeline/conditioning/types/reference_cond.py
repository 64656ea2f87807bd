"""See ``ltx_core.conditioning.types.reference_cond``."""

from ltx_core.conditioning.types.reference_cond import *  # noqa: F403
