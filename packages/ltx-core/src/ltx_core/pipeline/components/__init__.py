"""See ``ltx_core.components``."""
