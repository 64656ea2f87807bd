"""``python -m benchmarks [name ...] [--device cuda] [--quick]``: prints tables, all benchmarks where none is named."""

from __future__ import annotations

import argparse
import importlib
import platform
import time

import torch

from benchmarks.common import Options, clock_of

CPU = (
    "precision",
    "transformer",
    "guidance",
    "text",
    "text_kv",
    "vae",
    "attention",
    "cheaper",
    "loop",
    "memory",
    "fp8",
    "load",
    "train_step",
    "training_memory",
    "scale",
    "stems",
    "code_size",
)
NAMES = (*CPU, "gpu", "mlx")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda; without names, cuda runs the gpu table")
    parser.add_argument("--quick", action="store_true", help="small sizes and two rounds, to see that all runs")
    arguments = parser.parse_args()
    options = Options(torch.device(arguments.device), arguments.quick)
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}, expected some of {', '.join(NAMES)}")
    names = arguments.names or (CPU if options.device.type == "cpu" else ("gpu",))
    clock = "processor" if clock_of(options.device) is time.process_time else "wall"
    print(
        f"torch {torch.__version__}, {hardware(options.device)}, {torch.get_num_threads()} threads, {clock} time\n",
        flush=True,
    )
    for name in names:
        start = time.perf_counter()
        for table in importlib.import_module(f"benchmarks.{name}").run(options):
            print(table, flush=True)
        print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)


def hardware(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


if __name__ == "__main__":
    main()
