"""See ``ltx_core.conditioning``."""
