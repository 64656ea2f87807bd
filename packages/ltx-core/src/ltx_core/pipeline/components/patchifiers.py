"""See ``ltx_core.components.patchifiers``."""

from ltx_core.components.patchifiers import *  # noqa: F403
