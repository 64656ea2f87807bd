"""The documented import paths; everything lives in ``ltx_core.components`` and ``ltx_core.conditioning``."""
