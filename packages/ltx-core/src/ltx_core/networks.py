"""The networks a backend supplies. Torch tensors go in and come out, whatever the backend computes with.

::

    texts -> TextEncoder -> contexts --------------.
    pixels -> VideoEncoder -> latent -> tokens -> Transformer -> latent -> VideoDecoder -> frames
    sound -> mel -> AudioEncoder ------'              ^     `--> AudioDecoder -> mel -> Vocoder -> sound
                                     LatentUpsampler (between stages)

Networks compute in the dtype they were built with and on a device of their own: they take tensors of any dtype and
device, and answer in the input's dtype unless said otherwise. Shapes: ``B`` batch, ``T`` tokens, ``C`` channels,
``F H W`` pixel frames, rows and columns, ``f h w`` those of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ltx_core.errors import ConfigError, check_known
from ltx_core.precision import DtypeName, Precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ltx_core.guidance.perturbations import BatchedPerturbationConfig
    from ltx_core.loader.checkpoint import Checkpoint
    from ltx_core.loader.lora import Lora
    from ltx_core.loader.streaming import Shards
    from ltx_core.model.audio_vae.config import AudioVaeConfig
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.video_vae.video_vae import DecodeConditioning


class Transformer(Protocol):
    """Velocities of noisy tokens."""

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
        max_batch_size: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities ``[B, T, C]`` of video and audio; None for a stream that is not given.

        At most ``max_batch_size`` samples are computed at once; None: all. Caches of a ``Modality``
        (``timestep_groups``, ``strength_groups``, ``text_memory``) may be ignored.
        """
        ...


class VideoEncoder(Protocol):
    """Pixels ``[B, 3, F, H, W]`` in [-1, 1] to normalised latents ``[B, C, f, h, w]``."""

    @property
    def can_stream(self) -> bool:
        """Whether ``encode_streaming`` can serve this network."""
        ...

    def __call__(self, video: Tensor) -> Tensor:
        """The mean of the posterior."""
        ...

    def encode_streaming(self, chunks: Iterable[Tensor]) -> Tensor:
        """The same of a clip that arrives in chunks of any length, in memory of one chunk."""
        ...

    def sample(self, video: Tensor, noise: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """A sample of the posterior; ``noise(shape)`` gives standard normal numbers."""
        ...


class VideoDecoder(Protocol):
    """Normalised latents to frames."""

    def decode_frames(
        self, latent: Tensor, conditioning: DecodeConditioning | None = None, most: int | None = None
    ) -> Iterator[Tensor]:
        """Chunks ``[F', H, W, 3]`` in [0, 1] of item 0 of ``latent [B, C, f, h, w]``, within the memory there is.

        ``most`` is how many latent cells of the picture a convolutional decoder decodes at once.
        """
        ...


class AudioEncoder(Protocol):
    """Log-mel pictures ``[B, 2, M, bins]`` to normalised latents ``[B, C, L, F]`` in the network's dtype."""

    config: AudioVaeConfig  # its ``mel`` says how sound becomes a picture

    def __call__(self, mel: Tensor) -> Tensor: ...


class AudioDecoder(Protocol):
    """Normalised latents ``[B, C, L, F]`` to log-mel pictures ``[B, 2, M, bins]`` in the network's dtype."""

    def __call__(self, latent: Tensor) -> Tensor: ...


class Vocoder(Protocol):
    """Log-mel pictures ``[B, 2, M, bins]`` to waveforms ``[B, 2, samples]``."""

    @property
    def output_sampling_rate(self) -> int:
        """Hz."""
        ...

    def __call__(self, mel: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Contexts:
    """The transformer's contexts of one prompt."""

    video: Tensor  # [1, S, c]
    audio: Tensor | None = None  # [1, S, c]; None for a model without sound
    mask: Tensor | None = None  # [1, S] integers, 1 = a token of the prompt; None: all are


class EncodedTexts(Protocol):
    """The transformer's contexts of prompts, a row for each; ``audio_context`` too where the model has sound."""

    @property
    def video_context(self) -> Tensor:
        """``[B, S, c]``."""
        ...

    @property
    def attention_mask(self) -> Tensor:
        """``[B, S]`` integers, 1 = to be attended to."""
        ...


class TextEncoder(Protocol):
    """Prompts to what the transformer reads."""

    def __call__(self, prompts: Sequence[str], dtype: torch.dtype | None = None) -> EncodedTexts:
        """Contexts of all prompts, in ``dtype`` if given."""
        ...


class LatentUpsampler(Protocol):
    """Un-normalised video latents ``[B, C, f, h, w]`` to larger ones, in space or in time."""

    def __call__(self, latent: Tensor) -> Tensor: ...


class DurationHead(Protocol):
    """Contexts of both streams to the natural length of a clip in seconds ``[B]``."""

    def __call__(self, video_context: Tensor | None = None, audio_context: Tensor | None = None) -> Tensor: ...


# What builds them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BuildSettings:
    """Settings with which networks are built."""

    precision: Precision
    device: torch.device
    quantization: str | None = None  # of the transformer
    compile_blocks: bool = False  # of the transformer
    streamed: bool = False  # only a few blocks of the transformer and of the language model are in device memory
    shards: Shards | None = None  # devices that hold their blocks together

    @property
    def dtype(self) -> torch.dtype:
        """The type that networks compute in."""
        return self.precision.dtype


class AdaptedTransformer(Protocol):
    """A transformer in memory, and the adapters now fused into it."""

    @property
    def network(self) -> Transformer: ...

    def serves(self, streams: Sequence[str]) -> bool:
        """Whether it has the weights of these streams ("video", "audio")."""
        ...

    def switch(self, loras: Sequence[Lora]) -> None:
        """Have exactly these adapters from now on; ``network`` may be another object afterwards.

        Raises ``CheckpointError`` for an adapter of which nothing fits.
        """
        ...

    def close(self) -> None:
        """End what reads or holds weights beside the network."""
        ...


class Backend(Protocol):
    """Builds networks from files."""

    def network(self, component: str, checkpoint: Checkpoint, settings: BuildSettings) -> Any:
        """A component of ``checkpoint`` behind its protocol: ``video_encoder``, ``video_decoder``, ``audio_encoder``,
        ``audio_decoder``, ``vocoder``, ``duration_head`` or ``latent_upsampler``."""
        ...

    def text_encoder(self, gemma: str, checkpoint: Checkpoint, settings: BuildSettings) -> TextEncoder:
        """The text encoder of ``checkpoint``; ``gemma`` is a Hugging Face folder or a packed file."""
        ...

    def transformer(
        self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings
    ) -> AdaptedTransformer:
        """The transformer of ``checkpoint`` for these streams, without adapters."""
        ...

    def release_memory(self, device: torch.device) -> None:
        """Give memory of dropped networks back to the device."""
        ...

    def free_bytes(self, device: torch.device) -> int:
        """Bytes that networks may still take."""
        ...

    def precision(self, dtype: DtypeName | torch.dtype, device: torch.device) -> Precision:
        """The precision of networks for a request's ``dtype``; ``auto`` is what this backend computes fast."""
        ...

    def check(self, component: str, checkpoint: Checkpoint) -> None:
        """Raises ``CheckpointError`` where the files do not fill a component; reads headers only."""
        ...

    def check_text_encoder(self, gemma: str, checkpoint: Checkpoint) -> None:
        """Raises ``CheckpointError`` where ``text_encoder`` would; reads headers only."""
        ...

    def check_quantization(self, name: str) -> None:
        """Raises ``ConfigError`` for a format of the transformer's weights that there is not."""
        ...

    def transformer_bytes(self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings) -> int:
        """Bytes that all weights of the transformer for these streams take in memory; reads headers only."""
        ...


BACKENDS = {"torch": "ltx_core.loader.backend:TorchBackend", "mlx": "ltx_mlx.backend:MLXBackend"}


def find_backend(name: str) -> Backend:
    """The backend called ``name``. Raises ``ConfigError`` for another name and for one that is not installed."""
    check_known("backend", name, BACKENDS)
    module, _, kind = BACKENDS[name].partition(":")
    try:
        backend: Backend = getattr(import_module(module), kind)()
    except ModuleNotFoundError as error:
        if name == "torch":
            raise  # said where commands end, with how to install it
        raise ConfigError(f"backend {name} needs the Python package {error.name}, which is not installed") from error
    return backend
