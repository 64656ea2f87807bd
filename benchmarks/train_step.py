"""Time and memory of a training step, and how much of it is waiting for data: ``python -m benchmarks.train_step``.

A random model of ``--width`` and ``--layers`` learns from latents of ``--size`` (latent frames x rows x columns) read
from disk. On an accelerator the peak is what was allocated there, on the CPU it is resident memory of the process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.tiny_training import CHANNELS, TOKENS, make_config, write_clip, write_model

from ltx_trainer.memory import peak_memory
from ltx_trainer.trainer import LtxvTrainer

WARM_UP = 3  # steps
EXAMPLES = 8


@dataclass(frozen=True)
class Variant:
    """A way to train, as changes of the configuration."""

    name: str
    changes: dict[str, Any]


VARIANTS = (
    Variant("LoRA", {}),
    Variant("LoRA, recomputing", {"optimization": {"enable_gradient_checkpointing": True}}),
    Variant("LoRA, int8 base", {"acceleration": {"quantization": "int8-quanto"}}),
    Variant("LoRA, all blocks swapped", {"acceleration": {"blocks_to_swap": -1}}),
    Variant("LoRA, bf16", {"acceleration": {"mixed_precision_mode": "bf16"}}),
    Variant("full", {"model": {"training_mode": "full"}}),
)


@dataclass(frozen=True)
class Measured:
    """Medians over the steps after the warm-up."""

    seconds: float
    data_share: float
    peak: int


def write_examples(root: Path, width: int, size: tuple[int, int, int]) -> Path:
    """Clips of noise with sound of the same length."""
    generator = torch.Generator().manual_seed(0)
    for index in range(EXAMPLES):
        caption = {
            "video_prompt_embeds": torch.randn(TOKENS, width, generator=generator),
            "audio_prompt_embeds": torch.randn(TOKENS, width, generator=generator),
            "prompt_attention_mask": torch.ones(TOKENS, dtype=torch.int64),
        }
        video = torch.randn(CHANNELS, *size, generator=generator)
        write_clip(root, f"clip_{index}", caption, video, torch.randn(8, size[0] * 8, 2, generator=generator))
    return root


def measure(variant: Variant, model: Path, data: Path, arguments: argparse.Namespace) -> Measured:
    """Train a few steps."""
    changes = {key: dict(value) for key, value in variant.changes.items()}
    acceleration = changes.get("acceleration", {})
    if acceleration.get("blocks_to_swap") == -1:
        acceleration["blocks_to_swap"] = arguments.layers
    steps = arguments.steps + WARM_UP
    changes["optimization"] = {"steps": steps, "batch_size": arguments.batch, **changes.get("optimization", {})}
    changes["data"] = {"num_dataloader_workers": arguments.workers}
    changes["checkpoints"] = {"save_training_state": "off"}
    with tempfile.TemporaryDirectory() as output:
        trainer = LtxvTrainer(make_config(model, data, Path(output), **changes))
        device = trainer.accelerator.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        reports = list(trainer.steps())[WARM_UP:]
    return Measured(
        statistics.median(report.seconds for report in reports),
        sum(report.data_seconds for report in reports) / sum(report.seconds for report in reports),
        peak_memory(device),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=3, default=(5, 12, 16), help="latent frames, rows, columns")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    size = tuple(arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        width = arguments.width
        model = write_model(Path(folder) / "m.safetensors", width=width, audio_width=width, layers=arguments.layers)
        data = write_examples(Path(folder) / "data", width, (size[0], size[1], size[2]))
        device = "cuda" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        tokens = size[0] * size[1] * size[2] + size[0] * 8
        print(f"{arguments.layers} blocks of width {width}, {tokens} tokens, batch {arguments.batch}, {device}")
        print(f"{'':26} {'ms/step':>10} {'data share':>11} {'peak MiB':>9}")
        for variant in VARIANTS:  # each in a process of its own, so that peaks are its own
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                result = pool.submit(measure, variant, model, data, arguments).result()
            share, peak = f"{result.data_share:.1%}", f"{result.peak / 2**20:.0f}"
            print(f"{variant.name:26} {result.seconds * 1000:10.1f} {share:>11} {peak:>9}", flush=True)


if __name__ == "__main__":
    main()
