"""A rehearsal for cards that are not at hand: published models without weights, on the ``meta`` device.

``meta`` is a second device that every build of torch has. It refuses operands from elsewhere and every read of a value
on the host, which on a card would be a synchronisation. Networks are built there from the headers of published files,
whose data is one hole, and whole plans run through the real engine.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core import networks
from ltx_core.loader.backend import FrameDecoder, TorchBackend
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import transformer_component
from ltx_core.loader.lora import Lora
from ltx_core.model.transformer.masks import StrengthGroups
from ltx_core.model.transformer.modality import TimestepGroups
from ltx_core.networks import BuildSettings
from ltx_core.sampling.denoisers import RunMemory
from ltx_pipelines.planning.plan import ModelFiles
from ltx_pipelines.utils.model_ledger import ModelLedger

MANIFESTS = Path(__file__).resolve().parents[1] / "manifests"
META = torch.device("meta")
TEXT_TOKENS = 1024


def write_header(path: Path, manifests: Sequence[Mapping[str, Any]], extra: Mapping[str, str] = {}) -> Path:
    """A file of published names and shapes; its data is one hole."""
    config: dict[str, Any] = {}
    for manifest in manifests:
        for name, value in (manifest["config"] or {}).items():
            config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    header: dict[str, Any] = {"__metadata__": {"config": json.dumps(config), **extra}}
    end = 0
    for manifest in manifests:
        for name, described in manifest["tensors"].items():
            shape = described["shape"] if isinstance(described, dict) else described
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def manifest(model: str, component: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / model / f"{component}.json").read_text())


class MetaBackend(TorchBackend):
    """Builds every network on ``meta``, from headers alone."""

    def network(self, component: str, checkpoint: Checkpoint, settings: BuildSettings) -> Any:
        dtype = torch.float32 if component == "vocoder" else settings.dtype
        network = empty(checkpoint, component, dtype)
        return FrameDecoder(network) if component == "video_decoder" else network

    def text_encoder(self, gemma: str, checkpoint: Checkpoint, settings: BuildSettings) -> Any:
        return MetaTexts(checkpoint, settings.dtype)

    def transformer(self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings) -> Any:
        return MetaTransformer(checkpoint, streams, settings)

    def free_bytes(self, device: torch.device) -> int:
        return 80 * 2**30


def empty(checkpoint: Checkpoint, component: str, dtype: torch.dtype, quantization: str | None = None) -> nn.Module:
    """A network on ``meta``, its buffers too, with the dtypes loading would give it."""
    weights = checkpoint.weights(component, dtype, META, quantization)
    network = checkpoint.empty_network(weights)
    stored = network.state_dict().keys()
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            kept = parameter.dtype if parameter.dtype.itemsize == 1 or not parameter.is_floating_point() else dtype
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, dtype=kept, device=META), False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            floating = buffer.is_floating_point() and buffer.dtype.itemsize > 1 and name in stored
            module.register_buffer(
                name, torch.empty_like(buffer, dtype=dtype if floating else None, device=META), False
            )
    return network.eval()


class MetaTransformer:
    """The transformer of a checkpoint on ``meta``; adapters are fitted to it and change nothing."""

    def __init__(self, checkpoint: Checkpoint, streams: Sequence[str], settings: BuildSettings) -> None:
        self.component = transformer_component(checkpoint.config, streams)
        self.weights = checkpoint.weights(self.component, settings.dtype, META, settings.quantization)
        self.network = empty(checkpoint, self.component, settings.dtype, settings.quantization)

    def serves(self, streams: Sequence[str]) -> bool:
        return self.component == "transformer" or len(streams) == 1

    def switch(self, loras: Sequence[Lora]) -> None:
        self.weights.fit_loras(tuple(lora for lora in loras if lora.strength != 0))

    def close(self) -> None:
        pass


@dataclass
class Encoded:
    video_context: Tensor
    audio_context: Tensor | None
    attention_mask: Tensor


class MetaTexts:
    """Contexts of the width the transformer reads, as the connectors give them.

    The mask stays on the host: whether it holds padding is read once for each prompt, before any loop.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        from ltx_core.model.transformer.config import TransformerConfig

        self.config, self.dtype = TransformerConfig.from_metadata(checkpoint.config), dtype

    def __call__(self, prompts: Sequence[str], dtype: torch.dtype | None = None) -> Encoded:
        def context(stream: Any) -> Tensor:
            width = self.config.caption_channels or stream.width
            return torch.empty(len(prompts), TEXT_TOKENS, width, dtype=dtype or self.dtype, device=META)

        streams = self.config.streams
        audio = context(streams["audio"]) if "audio" in streams else None
        return Encoded(context(streams["video"]), audio, torch.ones(len(prompts), TEXT_TOKENS, dtype=torch.long))


def memory_unread(states: Mapping[str, Any]) -> RunMemory:
    """What a run keeps, as if the masks had been read: two noise levels, attention strengths that need a dense bias.

    `RunMemory.of` is the one place of a run that reads values: once, before its loop.
    """
    levels = {}
    for name, state in states.items():
        mask = state.denoise_mask
        index = torch.empty(mask.shape[:2], dtype=torch.long, device=mask.device)
        levels[name] = TimestepGroups(mask, torch.empty(2, device=mask.device), index)
    masks = {name: state.attention_mask for name, state in states.items() if state.attention_mask is not None}
    return RunMemory(levels, {name: StrengthGroups(mask, (), (), ()) for name, mask in masks.items()})


@contextmanager
def meta_ledger(files: ModelFiles, monkeypatch: Any, **settings: Any) -> Iterator[ModelLedger]:
    """A ledger whose device and networks are ``meta``. Headers are checked as networks are built; there is no Gemma."""
    monkeypatch.setattr(ModelLedger, "check", lambda self, *components: None)
    monkeypatch.setitem(networks.BACKENDS, "meta", f"{__name__}:MetaBackend")
    ledger = ModelLedger(files, device=META, backend="meta", policy="resident", **settings)  # type: ignore[arg-type]
    ledger.__dict__["text_tokens"] = TEXT_TOKENS
    yield ledger
