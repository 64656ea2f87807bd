"""The networks of this package as a backend: built from checkpoints, adapters fused, blocks streamed where asked."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import transformer_component
from ltx_core.loader.lora import Lora
from ltx_core.loader.quantization import find_policy
from ltx_core.loader.sources import Derived
from ltx_core.loader.streaming import Hold, StreamingModel, build_streaming
from ltx_core.loader.weights import ComponentWeights
from ltx_core.model.common.memory import free_bytes
from ltx_core.model.transformer.model import LTXModel
from ltx_core.model.video_vae.frames import AnyVideoDecoder, decode_video
from ltx_core.model.video_vae.video_vae import DecodeConditioning
from ltx_core.networks import AdaptedTransformer, BuildSettings, TextEncoder
from ltx_core.precision import DtypeName, Precision, resolve

logger = logging.getLogger(__name__)


class TorchBackend:
    """Networks of torch."""

    def network(self, component: str, checkpoint: Checkpoint, settings: BuildSettings) -> nn.Module | FrameDecoder:
        """A component; a vocoder is always float32."""
        dtype = torch.float32 if component == "vocoder" else settings.precision
        network = checkpoint.build(component, dtype, settings.device)
        return FrameDecoder(network) if component == "video_decoder" else network  # type: ignore[arg-type]

    def text_encoder(self, gemma: str, checkpoint: Checkpoint, settings: BuildSettings) -> TextEncoder:
        """Gemma with the checkpoint's connectors, or the T5 encoder of LTX-Video."""
        if checkpoint.is_ltx_video:
            from ltx_core.text_encoders.t5 import load_t5

            return load_t5(gemma, settings.precision, settings.device)
        from ltx_core.text_encoders.gemma.encoder import load_text_encoder

        hold: Hold | None = settings.shards or ("file" if settings.streamed else None)
        return load_text_encoder(gemma, checkpoint, settings.precision, settings.device, hold=hold)

    def transformer(
        self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings
    ) -> AdaptedTransformer:
        """The transformer in memory, or with its blocks streamed, from other devices too."""
        if settings.streamed or settings.shards is not None:
            return StreamedTransformer(checkpoint, settings)
        return ResidentTransformer(checkpoint, streams, settings)

    def release_memory(self, device: torch.device) -> None:
        """Free what nothing refers to any more."""
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def free_bytes(self, device: torch.device) -> int:
        """Free memory of the device in bytes."""
        return free_bytes(device)

    def precision(self, dtype: DtypeName | torch.dtype, device: torch.device) -> Precision:
        """By the one policy for all devices."""
        return resolve(dtype, device)

    def check(self, component: str, checkpoint: Checkpoint) -> None:
        """Against the network without data."""
        checkpoint.empty_network(checkpoint.weights(component))

    def check_text_encoder(self, gemma: str, checkpoint: Checkpoint) -> None:
        """Of Gemma; that of LTX-Video is read when it is built."""
        if not checkpoint.is_ltx_video:
            from ltx_core.text_encoders.gemma.encoder import check_text_encoder

            check_text_encoder(gemma, checkpoint)

    def check_quantization(self, name: str) -> None:
        """One of `ltx_core.loader.quantization`."""
        find_policy(name)

    def transformer_bytes(self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings) -> int:
        """A byte for each weight of a quantised layer, the rest in what matrices are kept in."""
        component, kept = transformer_component(checkpoint.config, streams), settings.precision
        weights = checkpoint.weights(component, settings.dtype, quantization=settings.quantization)
        total = 0
        for path, layer in weights.layers.items():
            for leaf, source in layer.items():
                packed = path in weights.quantized and leaf == "weight"
                size = 1 if packed else (kept.stored or kept.dtype).itemsize
                total += math.prod(source.info.shape) * size
        return total


@dataclass(frozen=True)
class FrameDecoder:
    """A video decoder that gives frames."""

    network: AnyVideoDecoder

    def decode_frames(
        self, latent: Tensor, conditioning: DecodeConditioning | None = None, most: int | None = None
    ) -> Iterator[Tensor]:
        """Chunks ``[f, H, W, 3]`` in [0, 1], as `decode_video`."""
        return decode_video(self.network, latent, conditioning=conditioning, most=most)


class ResidentTransformer:
    """The transformer and the adapters now fused into it. Base values of adapted layers stay in host memory."""

    def __init__(self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings) -> None:
        self.config = checkpoint.config
        self.component = transformer_component(self.config, streams)
        how = (self.component, settings.precision, settings.device)
        self.network = checkpoint.build(*how, quantization=settings.quantization)
        if settings.compile_blocks:
            compile_blocks(self.network)
        self.weights: ComponentWeights = checkpoint.weights(*how, quantization=settings.quantization)
        self.loras: tuple[Lora, ...] = ()
        self.held: set[str] = set()  # tensors that stay in memory, because adapters change their layers

    def serves(self, streams: Sequence[str]) -> bool:
        return self.component in ("transformer", transformer_component(self.config, streams))

    def close(self) -> None:
        """Nothing to end: dropping the network frees it."""

    def switch(self, loras: Sequence[Lora]) -> None:
        """Touches only the layers that change."""
        wanted = tuple(lora for lora in loras if lora.strength != 0)
        if [(lora.path, lora.strength) for lora in wanted] == [(lora.path, lora.strength) for lora in self.loras]:
            return
        wanted = self.weights.fit_loras(wanted)
        self._hold(self.weights.layers_changed_by(wanted))
        self.weights.swap_loras(self.network, self.loras, wanted)
        self.loras = wanted

    def _hold(self, paths: set[str]) -> None:
        """Read the base values of these layers once and keep them, so that later switches read nothing."""
        held = {}
        for path in paths:
            for leaf in self.weights.layers[path]:
                key = f"{path}.{leaf}" if path else leaf
                source = self.weights.sources[key]
                if key not in self.held:
                    tensor = source.read()
                    held[key] = Derived(source.file, source.key, source.info, (), lambda tensor=tensor: tensor)
        self.held |= held.keys()
        self.weights = replace(self.weights, sources={**self.weights.sources, **held})


class StreamedTransformer:
    """The transformer with two blocks on the device at a time; other adapters mean new blocks."""

    def __init__(self, checkpoint: Checkpoint, settings: BuildSettings) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.loras: tuple[Lora, ...] | None = None
        self.model: StreamingModel | None = None

    @property
    def network(self) -> nn.Module:
        assert self.model is not None
        return self.model.network

    def serves(self, streams: Sequence[str]) -> bool:
        return True

    def switch(self, loras: Sequence[Lora]) -> None:
        """Build the blocks anew where the adapters differ."""
        wanted = tuple(lora for lora in loras if lora.strength != 0)
        if wanted == self.loras:
            return
        self.close()
        settings = self.settings
        how = (settings.precision, settings.device, wanted, settings.quantization, self._hold())
        self.model, self.loras = build_streaming(self.checkpoint, *how), wanted
        if settings.compile_blocks:
            compile_blocks(self.model.network)

    def close(self) -> None:
        """Free the slots and end the reader."""
        if self.model is not None:
            self.model.close()
            self.model = None

    def _hold(self) -> Hold:
        """Place of streamed weights: devices that share them, host memory beside an accelerator, else the file."""
        if self.settings.shards is not None:
            return self.settings.shards
        files = [Path(file.path) for part in self.checkpoint.parts_of("transformer") for file in part.files]
        size = sum(path.stat().st_size for path in files)
        free = free_bytes(torch.device("cpu"))
        if self.settings.device.type == "cpu" or 1.2 * size > free:
            logger.info("blocks are read from the file in every pass: %.1f GB, %.1f GB free", size / 1e9, free / 1e9)
            return "file"
        return "host"


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks of a transformer."""
    assert isinstance(network, LTXModel)
    network.compile_blocks()
