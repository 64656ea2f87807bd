"""See ``ltx_core.components.protocols``."""

from ltx_core.components.protocols import *  # noqa: F403
