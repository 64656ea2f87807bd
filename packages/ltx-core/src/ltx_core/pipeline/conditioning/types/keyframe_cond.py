"""See ``ltx_core.conditioning.types.keyframe_cond``."""

from ltx_core.conditioning.types.keyframe_cond import *  # noqa: F403
