"""Time and memory of a training step, next to its plan and to a plain loop: ``python -m benchmarks.train_step``.

A random model of ``--width`` and ``--layers`` learns from latents of ``--size`` (latent frames x rows x columns) read
from disk. On an accelerator the peak is what was allocated there, on the CPU it is resident memory of the process.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.tiny_training import CHANNELS, TOKENS, make_config, write_clip, write_dataset, write_model

from benchmarks.common import clock_of
from ltx_core.model.common.memory import peak_bytes
from ltx_core.model.transformer.modality import Modality
from ltx_trainer.datasets import collate
from ltx_trainer.draws import step_draws
from ltx_trainer.lora import add_lora
from ltx_trainer.memory_plan import plan_memory
from ltx_trainer.trainer import LtxvTrainer, lora_settings

WARM_UP = 3  # steps
EXAMPLES = 8
COLUMNS = ("training", "ms/step", "data share", "peak MiB", "planned MiB", "over plain")


ROW = "{:26} {:>10} {:>11} {:>9} {:>12} {:>11}"
CLEAR_REFS = Path("/proc/self/clear_refs")


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
    peak: int  # bytes beyond what is held before the run
    planned: int
    overhead: float  # of a step over one of a plain loop; not a number where that was not run


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
    load_everything(changes)
    with tempfile.TemporaryDirectory() as output:
        trainer = LtxvTrainer(make_config(model, data, Path(output), **changes))
        device = trainer.accelerator.device
        before = start_measuring(device)
        reports = list(trainer.steps())[WARM_UP:]
        peak = peak_bytes(device) - before
    return Measured(
        statistics.median(report.seconds for report in reports),
        sum(report.data_seconds for report in reports) / sum(report.seconds for report in reports),
        peak,
        plan_memory(trainer.config).device,
        math.nan,
    )


def load_everything(changes: Mapping[str, Any]) -> None:
    """Train a minute model, so that what libraries load at their first use is not counted for the one measured."""
    with tempfile.TemporaryDirectory() as folder:
        model, data = write_model(Path(folder) / "m.safetensors"), write_dataset(Path(folder) / "data")
        swaps = {"acceleration": {**changes.get("acceleration", {}), "blocks_to_swap": 0}}
        optimization = {"optimization": {**changes["optimization"], "steps": 1}}
        config = make_config(model, data, Path(folder) / "out", **{**changes, **swaps, **optimization})
        list(LtxvTrainer(config).steps())


def start_measuring(device: torch.device) -> int:
    """Begin to measure the peak anew; returns what is held already."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")  # the kernel's way to forget the peak
    return peak_bytes(device)


def compare(model: Path, data: Path, arguments: argparse.Namespace) -> Measured:
    """Steps of the trainer and of a plain loop in turns, so that a busy machine slows both."""
    changes = {
        "optimization": {"steps": arguments.steps + WARM_UP, "batch_size": arguments.batch},
        "data": {"num_dataloader_workers": arguments.workers},
        "checkpoints": {"save_training_state": "off"},
    }
    with tempfile.TemporaryDirectory() as output:
        trainer = LtxvTrainer(make_config(model, data, Path(output), **changes))
        clock = clock_of(trainer.accelerator.device)  # of the processor where there is only that: others do not count
        ours, plain = trainer.steps(), plain_steps(trainer, clock)
        times = []
        for _ in range(arguments.steps + WARM_UP):
            started = clock()
            next(ours)
            times.append((clock() - started, next(plain)))
    mine, theirs = (statistics.median(column) for column in zip(*times[WARM_UP:-1], strict=True))  # the last one saves
    return Measured(mine, 0.0, 0, 0, mine / theirs - 1)


def plain_steps(trainer: LtxvTrainer, clock: Callable[[], float]) -> Iterator[float]:
    """Seconds of steps as one writes them by hand: the same network and adapter, one batch, AdamW, clipping."""
    network = trainer.checkpoint.build("transformer", torch.float32)
    add_lora(network, lora_settings(trainer.config), trainer.config.seed)
    network = network.to(trainer.accelerator.device).train()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    objective = trainer.objective
    batch = collate([trainer.dataset[index] for index in range(trainer.config.optimization.batch_size)])
    inputs = objective.strategy.prepare_training_inputs(batch, step_draws("cpu", 0)).modalities
    while True:
        started = clock()
        contexts = objective.contexts(batch["conditions"])
        modalities, targets = {}, {}
        for name, given in inputs.items():
            clean = given.latent
            sigma, noise = torch.rand(clean.shape[0]), torch.randn_like(clean)
            weight = sigma.view(-1, 1, 1)
            targets[name] = noise - clean
            modalities[name] = Modality(
                latent=(1 - weight) * clean + weight * noise,
                sigma=sigma,
                timesteps=sigma.view(-1, 1).expand(clean.shape[:2]),
                positions=given.positions,
                context=contexts[name],
            )
        made = dict(zip(("video", "audio"), network(modalities["video"], modalities["audio"], None), strict=True))
        loss = sum((made[name] - target).square().mean() for name, target in targets.items())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        yield clock() - started


def results(arguments: argparse.Namespace) -> Iterator[tuple[str, Measured]]:
    """Every variant, each measured in a process of its own, so that peaks are its own."""
    with tempfile.TemporaryDirectory() as folder:
        width, layers, (frames, rows, columns) = arguments.width, arguments.layers, arguments.size
        model = write_model(Path(folder) / "m.safetensors", width=width, audio_width=width, layers=layers)
        data = write_examples(Path(folder) / "data", width, (frames, rows, columns))
        for variant in VARIANTS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                yield variant.name, pool.submit(measure, variant, model, data, arguments).result()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            yield "LoRA, next to a plain loop", pool.submit(compare, model, data, arguments).result()


def title(arguments: argparse.Namespace) -> str:
    frames, rows, columns = arguments.size
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    tokens = frames * rows * columns + frames * 8
    return f"{arguments.layers} blocks of width {arguments.width}, {tokens} tokens, batch {arguments.batch}, {device}"


def cells(name: str, result: Measured) -> tuple[str, ...]:
    overhead = "" if math.isnan(result.overhead) else f"{result.overhead:+.1%}"
    memory = [f"{count / 2**20:.0f}" if count else "" for count in (result.peak, result.planned)]
    return name, f"{result.seconds * 1000:.1f}", f"{result.data_share:.1%}", *memory, overhead


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
    print(ROW.format(*COLUMNS))
    for name, result in results(arguments):
        print(ROW.format(*cells(name, result)), flush=True)


if __name__ == "__main__":
    main()
