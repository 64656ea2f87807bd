"""What a run will hold in memory, computed from file headers before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.model.transformer.model import LTXModel
from ltx_core.precision import resolve_mixed
from ltx_trainer.config import TrainerConfig
from ltx_trainer.datasets import PrecomputedDataset
from ltx_trainer.lora import is_target, linear_size, matching_linears
from ltx_trainer.memory import storage_format
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.models import open_trainable
from ltx_trainer.processing.workspace import default_device

GIB = 2**30
LOOKED_AT = 64  # examples whose size is read to find the longest
VALUES_PER_TOKEN = 34  # kept per token, block and unit of width without recomputation: about what autograd saves
ADAM_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}  # per trained value


@dataclass(frozen=True)
class MemoryItem:
    """One thing that is held: bytes on the device and in host memory."""

    name: str
    device: int
    host: int = 0
    note: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """Everything a step holds. Activations are an estimate, the rest is counted."""

    items: tuple[MemoryItem, ...]
    trained: int  # parameters
    tokens: int  # of the longest batch

    @property
    def device(self) -> int:
        return sum(item.device for item in self.items)

    @property
    def host(self) -> int:
        return sum(item.host for item in self.items)

    def lines(self) -> list[str]:
        """The plan as a table."""
        rows = [*self.items, MemoryItem("together", self.device, self.host)]
        lines = [f"{'':24} {'device':>12} {'host':>12}"]
        lines += [f"{row.name:24} {amount(row.device):>12} {amount(row.host):>12}  {row.note}".rstrip() for row in rows]
        return [*lines, f"{self.trained:,} trained parameters, {self.tokens:,} tokens in the longest batch"]


def amount(count: int) -> str:
    """Bytes as text."""
    if not count:
        return "-"
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


def plan_memory(config: TrainerConfig) -> MemoryPlan:
    """The plan of a configuration. Reads headers only; raises what the run itself would raise for wrong files."""
    model = config.model
    files = ModelFiles.of(model.model_path, model.text_encoder_path, model.video_vae_path, model.audio_vae_path)
    checkpoint = open_trainable(files)
    network = checkpoint.empty_network(checkpoint.weights("transformer"))
    assert isinstance(network, LTXModel)
    trained = trained_parameters(network, config)
    mixed = resolve_mixed(config.acceleration.mixed_precision_mode, default_device()).mixed != "no"
    tokens = batch_tokens(config)
    items = [
        *_weights(network, config, 2 if mixed else 4),
        MemoryItem("connectors", connector_bytes(checkpoint, 2 if mixed else 4)),
        MemoryItem("trained weights", trained * 4, note="float32") if model.training_mode == "lora" else None,
        MemoryItem("gradients", trained * 4, note="float32"),
        MemoryItem("optimizer", trained * ADAM_BYTES[config.optimization.optimizer_type]),
        MemoryItem("average (EMA)", trained * 4) if config.optimization.ema_decay is not None else None,
        MemoryItem("activations", activation_bytes(network, config, tokens, 2 if mixed else 4), note="estimated"),
    ]
    return MemoryPlan(tuple(item for item in items if item is not None), trained, sum(tokens.values()))


def trained_parameters(network: nn.Module, config: TrainerConfig) -> int:
    """How many values are learned."""
    if config.model.training_mode == "lora" and config.lora is not None:
        names = matching_linears(network, config.lora.target_modules)
        return sum(config.lora.rank * sum(linear_size(network.get_submodule(name))) for name in names)
    wanted = config.model.trainable_modules
    owners = {
        name: parameter.numel()
        for name, parameter in network.named_parameters()
        if wanted is None or any(is_target(part, wanted) for part in _owners(name))
    }
    return sum(owners.values())


def _owners(name: str) -> list[str]:
    """The names of all modules a parameter lies in."""
    parts = name.split(".")[:-1]
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _weights(network: LTXModel, config: TrainerConfig, itemsize: int) -> list[MemoryItem]:
    """The transformer: on the device, and the blocks that wait in host memory."""
    acceleration = config.acceleration
    full = config.model.training_mode == "full" and config.model.trainable_modules is None
    block_itemsize, note = (4, "float32") if full else (itemsize, "bfloat16" if itemsize == 2 else "float32")
    if acceleration.quantization is not None:
        block_itemsize = storage_format(acceleration.quantization).itemsize
        note = acceleration.quantization
    per_block = [sum(p.numel() for p in block.parameters()) * block_itemsize for block in network.transformer_blocks]
    rest = sum(p.numel() for p in network.parameters()) - sum(
        p.numel() for p in network.transformer_blocks.parameters()
    )
    swapped = acceleration.blocks_to_swap
    resident = sum(per_block[: len(per_block) - swapped]) + (max(per_block) if swapped else 0)
    waiting = sum(per_block[len(per_block) - swapped :]) if swapped else 0
    return [MemoryItem("transformer", resident + rest * (4 if full else itemsize), waiting, note)]


def connector_bytes(checkpoint: Checkpoint, itemsize: int) -> int:
    """The text connectors without their projection."""
    if "embeddings" not in checkpoint.components:
        return 0
    sources = checkpoint.sources("embeddings").items()
    return itemsize * sum(prod(source.info.shape) for name, source in sources if "_connector." in name)


def batch_tokens(config: TrainerConfig) -> dict[str, int]:
    """Tokens of the longest example found, references too, times the batch size, by modality."""
    dataset = PrecomputedDataset(config.data.preprocessed_data_root, config.training_strategy.data_sources())
    longest: dict[str, int] = {"video": 0, "audio": 0}
    for index in range(0, len(dataset), max(len(dataset) // LOOKED_AT, 1)):
        counts = example_tokens(dataset, index)
        longest = {name: max(longest[name], counts[name]) for name in longest}
    return {name: count * config.optimization.batch_size for name, count in longest.items()}


def example_tokens(dataset: PrecomputedDataset, index: int) -> dict[str, int]:
    """Tokens of one example by modality."""
    counts = {"video": 0, "audio": 0}
    for record in dataset[index].values():
        latents = record.get("latents") if isinstance(record, dict) else None
        if isinstance(latents, torch.Tensor):
            name = "video" if latents.ndim == 4 else "audio"
            counts[name] += prod(latents.shape[1:]) if name == "video" else latents.shape[1]
    return counts


def activation_bytes(network: LTXModel, config: TrainerConfig, tokens: dict[str, int], itemsize: int) -> int:
    """What the backward pass keeps: every block's activations, or with recomputation its inputs and one block's."""
    blocks = network.num_blocks
    widths: Sequence[tuple[str, int]] = [(name, stream.width) for name, stream in network.config.streams.items()]
    per_value = sum(tokens[name] * width for name, width in widths) * itemsize
    recomputes = config.optimization.enable_gradient_checkpointing or config.acceleration.blocks_to_swap > 0
    return per_value * (blocks + VALUES_PER_TOKEN if recomputes else blocks * VALUES_PER_TOKEN)
