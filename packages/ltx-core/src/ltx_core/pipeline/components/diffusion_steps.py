"""See ``ltx_core.components.diffusion_steps``."""

from ltx_core.components.diffusion_steps import *  # noqa: F403
