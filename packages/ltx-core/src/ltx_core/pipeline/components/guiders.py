"""See ``ltx_core.components.guiders``."""

from ltx_core.components.guiders import *  # noqa: F403
