"""See ``ltx_core.components.schedulers``."""

from ltx_core.components.schedulers import *  # noqa: F403
