"""See ``ltx_core.conditioning.types.latent_cond``."""

from ltx_core.conditioning.types.latent_cond import *  # noqa: F403
