"""See ``ltx_core.conditioning.tools``."""

from ltx_core.conditioning.tools import *  # noqa: F403
