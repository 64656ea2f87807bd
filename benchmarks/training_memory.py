"""Memory and operations that training takes, from the shapes of the published files: no weights, no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Table
from benchmarks.guidance import without_data
from benchmarks.models import Size, modalities_of, published
from ltx_core.loader.components import DIFFUSION_MODEL
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.model import LTXModel
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
SPEEDS = {  # dense bfloat16 TFLOP a second, as their maker states them
    "RTX 4070, 12 GB": 58,
    "RTX 3090, 24 GB": 71,
    "RTX 4090, 24 GB": 165,
    "RTX 5090, 32 GB": 210,
    "A100, 80 GB": 312,
    "H100, 80 GB": 989,
}
REACHED = 0.4  # of that speed, an assumption


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


def tokens_of(size: tuple[int, int, int]) -> dict[str, int]:
    """Tokens of a clip of a size with its sound."""
    width, height, frames = size
    factors = SpatioTemporalScaleFactors.default()
    audio = AudioLatentShape.from_video_pixel_shape(VideoPixelShape(1, frames, height, width, 24.0)).frames
    video = factors.latent_frames(frames) * (height // factors.height) * (width // factors.width)
    return {"video": video, "audio": audio}


def memory_model(folder: str, size: tuple[int, int, int]) -> MemoryModel:
    """Facts from a published model's headers, and clips of a size with their sound."""
    read = {name: json.loads((MANIFESTS / folder / f"{name}.json").read_text()) for name in FILES}
    shapes = {
        name.removeprefix(DIFFUSION_MODEL): tuple(_shape(tensor))
        for name, tensor in read["transformer"]["tensors"].items()
    }
    connectors = read["embeddings_connectors"]["tensors"].values()
    return MemoryModel(
        TransformerConfig.from_metadata(read["transformer"]["config"]),
        shapes,
        sum(prod(_shape(tensor)) for tensor in connectors),
        tokens_of(size),
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


def operations(folder: str, size: tuple[int, int, int]) -> float:
    """TFLOP of a step over frozen weights, batch 1, recomputed activations; an adapter's own are not counted.

    Blocks are alike: one and two are counted, on tensors without data.
    """
    found, tokens = [], tokens_of(size)
    for blocks in (1, 2):
        section = published(folder) | {"num_layers": blocks}
        with torch.device("meta"):
            network = LTXModel(TransformerConfig.from_metadata({"transformer": section})).requires_grad_(False).train()
        network.enable_gradient_checkpointing()
        given = modalities_of(network, Size(folder, section, tokens["video"], tokens["audio"]), torch.device("cpu"))
        video, audio = without_data(given["video"]), without_data(given["audio"])
        with FlopCounterMode(display=False) as counter:
            for latent in (video.latent, audio.latent):
                latent.requires_grad_()
            sum(made.sum() for made in network(video, audio, None)).backward()
        found.append(counter.get_total_flops())
    one, two = found
    return (one + (int(published(folder)["num_layers"]) - 1) * (two - one)) / 1e12


def step_rows(counted: Sequence[float]) -> Iterator[tuple[str, ...]]:
    """Cards, and their seconds for steps of so many TFLOP."""
    for card, speed in SPEEDS.items():
        yield card, *(f"{each / speed / REACHED:.1f}" for each in counted)


COLUMNS = ("model", "training", *("x".join(map(str, size)) for size in SIZES), "smallest card")


def run(options: Any) -> list[Any]:
    """The tables, for ``python -m benchmarks``."""
    counted = [round(operations(MODELS["LTX-2.3"], size)) for size in SIZES]
    sizes = [f"{name}, {each} TFLOP" for name, each in zip(COLUMNS[2:-1], counted, strict=True)]
    return [
        Table("Memory of a training step, GiB, batch 1, recomputed activations", COLUMNS, list(rows())),
        Table(
            f"Seconds of a LoRA's step of LTX-2.3 at {REACHED:.0%} of a card's speed",
            ("card", *sizes),
            list(step_rows(counted)),
        ),
    ]
