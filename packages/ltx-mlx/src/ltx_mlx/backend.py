"""MLX as a backend: the networks of a checkpoint, adapters fused, linears quantised, blocks streamed where asked."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import torch

from ltx_core.errors import ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import COMPONENTS, transformer_component
from ltx_core.loader.lora import Lora
from ltx_core.loader.weights import ComponentWeights
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.networks import AdaptedTransformer, BuildSettings, TextEncoder
from ltx_core.precision import DtypeName, Precision, resolve
from ltx_mlx.arrays import flat_parameters
from ltx_mlx.audio_vae import AudioDecoder, AudioEncoder
from ltx_mlx.diffusion_decoder import DiffusionVideoDecoder
from ltx_mlx.duration_head import DurationHead
from ltx_mlx.embeddings import EmbeddingsProcessor
from ltx_mlx.memory import free_bytes, recommended_bytes, set_limits, wire
from ltx_mlx.quantization import Quantization
from ltx_mlx.streaming import StreamedBlocks
from ltx_mlx.text_encoder import check_gemma, load_gemma, load_t5
from ltx_mlx.transformer import LTXModel, TransformerBlock
from ltx_mlx.upsampler import LatentUpsampler
from ltx_mlx.video_vae import VideoDecoder, VideoEncoder
from ltx_mlx.vocoder import make_vocoder
from ltx_mlx.weights import Loader

BLOCKS = f"{LTXModel.BLOCK_LIST}."


def make_video_decoder(config: VideoVaeConfig) -> VideoDecoder | DiffusionVideoDecoder:
    """The decoder a config describes."""
    diffusion = config.diffusion_decoder
    return VideoDecoder(config) if diffusion is None else DiffusionVideoDecoder(diffusion)


#: The network of each component, made from its frozen config, without data.
NETWORKS: Mapping[str, Callable[[Any], nn.Module]] = {
    "transformer": LTXModel,
    "video_transformer": LTXModel,
    "audio_transformer": LTXModel,
    "embeddings": EmbeddingsProcessor,
    "video_encoder": VideoEncoder,
    "video_decoder": make_video_decoder,
    "audio_encoder": AudioEncoder,
    "audio_decoder": AudioDecoder,
    "vocoder": make_vocoder,
    "duration_head": DurationHead,
    "latent_upsampler": LatentUpsampler,
}


def prepare(
    component: str, checkpoint: Checkpoint, dtype: torch.dtype | None, quantization: Quantization | None = None
) -> tuple[nn.Module, Loader]:
    """The empty network of a component and what fills it; only headers are read.

    Raises ``CheckpointError`` where the files do not fit.
    """
    network = NETWORKS[component](checkpoint.network_config(component))
    spec, sources = COMPONENTS[component], checkpoint.sources(component)
    if spec.streams:  # of a transformer with more streams, what these read
        own = flat_parameters(network).keys()
        layers = {name.removesuffix(".weight") for name in own if name.endswith(".weight")}  # with their scales
        sources = {name: source for name, source in sources.items() if name in own or name.rpartition(".")[0] in layers}
    weights = ComponentWeights(component, sources, dtype)
    return network, Loader.of(network, weights, quantization, spec.spare)


def load_transformer_weights(
    path: str | os.PathLike[str],
    streams: Sequence[str] | None = None,
    dtype: DtypeName | torch.dtype = "auto",
    quantization: str | None = None,
) -> LTXModel:
    """The transformer of the checkpoint at ``path`` with its weights, in ``dtype`` and ``quantization``.

    ``streams`` names one of a joined model's two, None is all it has. Raises ``CheckpointError`` where the file does
    not fill the network exactly.
    """
    backend, checkpoint = MLXBackend(), Checkpoint.open(path)
    device = torch.device("cpu")
    chosen = tuple(streams or checkpoint.network_config("transformer").streams)
    settings = BuildSettings(backend.precision(dtype, device), device, quantization)
    network = backend.transformer(checkpoint, chosen, settings).network
    assert isinstance(network, LTXModel)
    return network


class MLXBackend:
    """Networks of MLX. They compute on the GPU of Apple silicon, else on the CPU, whatever device is asked for."""

    def __init__(self) -> None:
        set_limits()

    def network(self, component: str, checkpoint: Checkpoint, settings: BuildSettings) -> nn.Module:
        """A component in ``settings.dtype``; a vocoder is always float32."""
        network, loader = prepare(component, checkpoint, torch.float32 if component == "vocoder" else settings.dtype)
        return loader.fill(network)

    def text_encoder(self, gemma: str, checkpoint: Checkpoint, settings: BuildSettings) -> TextEncoder:
        """Gemma with the checkpoint's connectors, or the T5 encoder of LTX-Video."""
        if checkpoint.is_ltx_video:
            return load_t5(gemma, settings.dtype)
        return load_gemma(gemma, checkpoint, settings.dtype)

    def transformer(
        self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings
    ) -> AdaptedTransformer:
        """The transformer in memory, or with its blocks read when they are needed."""
        if settings.compile_blocks:
            raise ConfigError("compile is asked for with backend mlx, which fuses on its own; leave it out")
        quantization = None if settings.quantization is None else Quantization.parse(settings.quantization)
        component = transformer_component(checkpoint.config, streams)
        network, loader = prepare(component, checkpoint, settings.dtype, quantization)
        assert isinstance(network, LTXModel)
        kind = StreamedTransformer if settings.streamed else ResidentTransformer
        return kind(checkpoint.config, network, loader)

    def release_memory(self, device: torch.device) -> None:
        """Free what nothing refers to any more, and the buffers kept for reuse."""
        gc.collect()
        mx.clear_cache()

    def free_bytes(self, device: torch.device) -> int:
        """Of the working set recommended for the GPU, else what the system has free."""
        return free_bytes()

    def precision(self, dtype: DtypeName | torch.dtype, device: torch.device) -> Precision:
        """``auto`` is bfloat16 on Apple silicon; on a CPU, where MLX emulates it, float32."""
        if dtype == "auto":
            return Precision("float32" if recommended_bytes() is None else "bfloat16")
        precision = resolve(dtype, device)
        if precision.stored is not None:
            raise ConfigError(f"dtype is {precision.name!r} with backend mlx, expected bfloat16, float16 or float32")
        return Precision(precision.name)

    def check(self, component: str, checkpoint: Checkpoint) -> None:
        """Against the network without data."""
        prepare(component, checkpoint, None)

    def check_text_encoder(self, gemma: str, checkpoint: Checkpoint) -> None:
        """Of Gemma; that of LTX-Video is read when it is built."""
        if not checkpoint.is_ltx_video:
            check_gemma(gemma, checkpoint)

    def check_quantization(self, name: str) -> None:
        """A name that `Quantization` knows."""
        Quantization.parse(name)

    def transformer_bytes(self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings) -> int:
        """Of the empty network, its linears quantised."""
        quantization = None if settings.quantization is None else Quantization.parse(settings.quantization)
        component = transformer_component(checkpoint.config, streams)
        network, _ = prepare(component, checkpoint, settings.dtype, quantization)
        return sum(
            array.size * (settings.dtype.itemsize if mx.issubdtype(array.dtype, mx.floating) else array.itemsize)
            for array in flat_parameters(network).values()
        )


class ResidentTransformer:
    """The transformer and the adapters now fused into it; wired into memory while it lives."""

    def __init__(self, config: Mapping[str, Any], network: LTXModel, loader: Loader) -> None:
        self.config, self.loader = config, loader
        self.loras: tuple[Lora, ...] = ()
        self.network = loader.fill(network)
        self._held = ExitStack()
        self._held.enter_context(wire(sum(array.nbytes for array in flat_parameters(network).values())))

    def serves(self, streams: Sequence[str]) -> bool:
        return self.loader.weights.name in ("transformer", transformer_component(self.config, streams))

    def switch(self, loras: Sequence[Lora]) -> None:
        """Reads the layers that change from their files again, so that removed adapters leave nothing."""
        wanted = self.loader.fit_loras(loras)
        if not same(wanted, self.loras):
            self.loader.fill(self.network, wanted, self.loader.changed_layers(self.loras, wanted))
            self.loras = wanted

    def close(self) -> None:
        """Give up the memory that was wired."""
        self._held.close()


class StreamedTransformer:
    """The transformer without its blocks, which are read from mapped files in every pass."""

    def __init__(self, config: Mapping[str, Any], network: LTXModel, loader: Loader) -> None:
        self.config, self.loader, self.network = config, loader, network
        self.loras: tuple[Lora, ...] = ()
        self.blocks: StreamedBlocks[TransformerBlock] = StreamedBlocks(network.num_blocks, self._read)
        network.transformer_blocks = self.blocks
        loader.fill(network, paths=[path for path in loader.weights.layers if not path.startswith(BLOCKS)])

    def serves(self, streams: Sequence[str]) -> bool:
        return self.loader.weights.name in ("transformer", transformer_component(self.config, streams))

    def switch(self, loras: Sequence[Lora]) -> None:
        """Adapters are fused into each block as it is read."""
        wanted = self.loader.fit_loras(loras)
        if not same(wanted, self.loras):
            changed = self.loader.changed_layers(self.loras, wanted)
            self.loras = wanted
            self.loader.fill(self.network, wanted, [path for path in changed if not path.startswith(BLOCKS)])
            self.blocks.forget()

    def close(self) -> None:
        """End the reader."""
        self.blocks.close()

    def _read(self, index: int) -> TransformerBlock:
        prefix = f"{BLOCKS}{index}."
        return self.loader.part(TransformerBlock(self.network.config), prefix, self.loras)


def same(one: Sequence[Lora], other: Sequence[Lora]) -> bool:
    return [(lora.path, lora.strength) for lora in one] == [(lora.path, lora.strength) for lora in other]
