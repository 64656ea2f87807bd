"""See ``ltx_core.components.noisers``."""

from ltx_core.components.noisers import *  # noqa: F403
