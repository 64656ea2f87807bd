"""Time and memory of a training step, and how much of it is waiting for data: ``python -m benchmarks.train_step``.

A random model of ``--width`` and ``--layers`` learns from latents of ``--size`` (latent frames x rows x columns) read
from disk. On an accelerator the peak is what was allocated there, on the CPU it is resident memory of the process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.tiny_training import CHANNELS, TOKENS, make_config, write_clip, write_model

from ltx_core.model.common.memory import peak_bytes
from ltx_trainer.trainer import LtxvTrainer

WARM_UP = 3  # steps
EXAMPLES = 8
COLUMNS = ("training", "ms/step", "data share", "peak MiB")


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
        peak_bytes(device),
    )


def results(arguments: argparse.Namespace) -> Iterator[tuple[str, Measured]]:
    """Every variant, each measured in a process of its own, so that peaks are its own."""
    with tempfile.TemporaryDirectory() as folder:
        width, layers, (frames, rows, columns) = arguments.width, arguments.layers, arguments.size
        model = write_model(Path(folder) / "m.safetensors", width=width, audio_width=width, layers=layers)
        data = write_examples(Path(folder) / "data", width, (frames, rows, columns))
        for variant in VARIANTS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                yield variant.name, pool.submit(measure, variant, model, data, arguments).result()


def title(arguments: argparse.Namespace) -> str:
    frames, rows, columns = arguments.size
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    tokens = frames * rows * columns + frames * 8
    return f"{arguments.layers} blocks of width {arguments.width}, {tokens} tokens, batch {arguments.batch}, {device}"


def cells(name: str, result: Measured) -> tuple[str, str, str, str]:
    return name, f"{result.seconds * 1000:.1f}", f"{result.data_share:.1%}", f"{result.peak / 2**20:.0f}"


def run(options: Any) -> list[Any]:
    """The table, for ``python -m benchmarks``."""
    from benchmarks.common import Table

    arguments = parser().parse_args(["--steps", "2", "--size", "2", "4", "4"] if options.quick else [])
    return [Table(title(arguments), COLUMNS, [cells(*each) for each in results(arguments)])]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    made.add_argument("--width", type=int, default=128)
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--size", type=int, nargs=3, default=(5, 12, 16), help="latent frames, rows, columns")
    made.add_argument("--batch", type=int, default=1)
    made.add_argument("--steps", type=int, default=10)
    made.add_argument("--workers", type=int, default=2)
    return made


def main() -> None:
    """Print the table, a line as soon as it is measured."""
    arguments = parser().parse_args()
    print(title(arguments))
    print("{:26} {:>10} {:>11} {:>9}".format(*COLUMNS))
    for name, result in results(arguments):
        print("{:26} {:>10} {:>11} {:>9}".format(*cells(name, result)), flush=True)


if __name__ == "__main__":
    main()
