"""Memory that training takes by model, size and setting, from the shapes of the published files: no weights, no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.common import Table
from ltx_core.loader.components import DIFFUSION_MODEL
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoPixelShape
from ltx_trainer.config import AccelerationConfig, LoraConfig, ModelConfig, OptimizationConfig, TrainerConfig
from ltx_trainer.machine import Machine
from ltx_trainer.memory_plan import GIB, MemoryModel

MANIFESTS = Path(__file__).resolve().parents[1] / "tests" / "manifests"
FILES = ("transformer", "embeddings_connectors")
MODELS = {"LTX-2 19B": "ltx-2-19b", "LTX-2.3": "ltx-2.3-22b"}
SIZES = ((512, 512, 25), (768, 512, 49), (768, 512, 121))
CARDS = (12, 16, 24, 32, 48, 80)  # GiB
ROOM = 1.5  # GiB for the driver, kernels and fragments


@dataclass(frozen=True)
class Setting:
    """A way to make a run fit."""

    name: str
    mode: str = "lora"
    quantization: Any = None
    swapped: int = 0


SETTINGS = (
    Setting("LoRA"),
    Setting("LoRA, int8 base", quantization="int8-quanto"),
    Setting("LoRA, int8, 24 blocks swapped", quantization="int8-quanto", swapped=24),
    Setting("LoRA, int8, 44 blocks swapped", quantization="int8-quanto", swapped=44),
    Setting("full", mode="full"),
)


def memory_model(folder: str, size: tuple[int, int, int]) -> MemoryModel:
    """Facts from a published model's headers, and clips of a size with their sound."""
    read = {name: json.loads((MANIFESTS / folder / f"{name}.json").read_text()) for name in FILES}
    width, height, frames = size
    factors = SpatioTemporalScaleFactors.default()
    video = factors.latent_frames(frames) * (height // factors.height) * (width // factors.width)
    audio = AudioLatentShape.from_video_pixel_shape(VideoPixelShape(1, frames, height, width, 24.0)).frames
    shapes = {
        name.removeprefix(DIFFUSION_MODEL): tuple(_shape(tensor))
        for name, tensor in read["transformer"]["tensors"].items()
    }
    connectors = read["embeddings_connectors"]["tensors"].values()
    return MemoryModel(
        TransformerConfig.from_metadata(read["transformer"]["config"]),
        shapes,
        sum(prod(_shape(tensor)) for tensor in connectors),
        {"video": video, "audio": audio},
        1,
        1024,
        Machine("cuda", 0, "bf16"),
    )


def _shape(tensor: Any) -> list[int]:
    return tensor["shape"] if isinstance(tensor, dict) else tensor


def needed(model: MemoryModel, setting: Setting) -> float:
    """GiB on the device for a batch of one, rank 32, recomputed activations."""
    config = TrainerConfig.model_construct(
        model=ModelConfig.model_construct(training_mode=setting.mode, trainable_modules=None),
        lora=LoraConfig(rank=32, alpha=32) if setting.mode == "lora" else None,
        optimization=OptimizationConfig(batch_size=1, enable_gradient_checkpointing=True),
        acceleration=AccelerationConfig(
            mixed_precision_mode="bf16", quantization=setting.quantization, blocks_to_swap=setting.swapped
        ),
    )
    return model.plan(config).device / GIB


def rows() -> Iterator[tuple[str, ...]]:
    """Model, setting, GiB at every size, and the smallest card for the middle size."""
    for name, folder in MODELS.items():
        models = [memory_model(folder, size) for size in SIZES]
        for setting in SETTINGS:
            found = [needed(model, setting) for model in models]
            card = next((f"{card} GB" for card in CARDS if found[1] + ROOM <= card), "several cards")
            yield name, setting.name, *(f"{each:.1f}" for each in found), card


COLUMNS = ("model", "training", *("x".join(map(str, size)) for size in SIZES), "smallest card")


def run(options: Any) -> list[Any]:
    """The table, for ``python -m benchmarks``."""
    return [Table("Memory of a training step, GiB, batch 1, recomputed activations", COLUMNS, list(rows()))]
