"""The error family. Everything a caller can do wrong ends in one of these, as one readable line."""


class LtxError(Exception):
    """Base of all errors raised on purpose. The message names the thing, its value and what was expected."""


class CheckpointError(LtxError, ValueError):
    """A weights file is missing, damaged, foreign or does not fit the network it should fill."""


class ConfigError(LtxError, ValueError):
    """A configuration is incomplete, contradictory or outside what the networks support."""


class ConditioningError(LtxError, ValueError):
    """A conditioning item does not fit the latent state it is applied to."""


class MediaError(LtxError, ValueError):
    """An image, video or audio file cannot be read or written."""
