"""See ``ltx_core.conditioning.types``."""
