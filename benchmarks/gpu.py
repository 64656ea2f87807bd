"""The published transformers with random weights: seconds of a pass, where they go, decode and load.

``python -m benchmarks --device cuda`` takes less than eight minutes on one card of the H100 class. On the CPU the same
code runs on tiny sizes, to see that it works.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Options, Table, synchronize
from benchmarks.files import write_transformer
from benchmarks.models import (
    LTX_19B,
    LTX_23,
    Size,
    guided_denoiser,
    modalities_of,
    published,
    random_model,
    section_of,
    states_of,
)
from benchmarks.vae import published_config, random_decoder, small_config
from ltx_core.loader import Checkpoint
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.model import X0Model
from ltx_core.optimizations import without
from ltx_core.sampling.denoisers import DenoiseCall

CLIPS = {"512x768x121": 16 * 16 * 24, "704x1280x121": 16 * 22 * 40}
PHASES = {
    "attention": ("flash", "attention", "fmha", "sdpa"),
    "linears": ("gemm", "mm", "linear", "cutlass", "nvjet", "xmma", "sm90_xmma", "cublas"),
}


@dataclass(frozen=True)
class Run:
    """Sizes and steps to run: the published sizes on an accelerator, tiny ones elsewhere."""

    device: torch.device
    dtype: torch.dtype
    models: Mapping[str, dict[str, Any]]
    clips: Mapping[str, int]
    matmul: int  # side of the square product that measures the peak
    repeats: int


def plan_of(options: Options) -> Run:
    if options.device.type == "cuda" and not options.quick:
        models = {name: published(name) for name in ("ltx-2-19b", "ltx-2.3-22b")}
        return Run(options.device, torch.bfloat16, models, CLIPS, 8192, 5)
    models = {"19B style": section_of(2, 4, 32, LTX_19B), "2.3 style": section_of(2, 4, 32, LTX_23)}
    return Run(options.device, torch.float32, models, {"tiny": 96}, 256, 2)


def run(options: Options) -> list[Table]:
    plan = plan_of(options)
    peak = matmul_peak(plan)
    tables = [Table("Matrix products", ("side", "TFLOP/s"), [[str(plan.matmul), f"{peak / 1e12:.2f}"]])]
    passes = Table(
        "Transformer",
        (
            "model, clip",
            "s per pass",
            "TFLOP",
            "TFLOP/s",
            "% of matmul peak",
            "guided step s",
            "without optimizations s",
            "weights GB",
            "peak GB",
        ),
    )
    phases = Table("Where a pass goes, % of its time", ("model, clip", *PHASES, "element-wise", "gaps", "kernels"))
    for name, section in plan.models.items():
        model = random_model(section, plan.device, plan.dtype)
        for clip, tokens in plan.clips.items():
            size = Size(name, section, tokens, text_tokens=1024 if tokens > 1000 else 64)
            passes.rows.append(measure_passes(f"{name}, {clip}", model, size, plan, peak))
            phases.rows.append(split(f"{name}, {clip}", model, size, plan))
        del model
        collect(plan.device)
    return [*tables, passes, phases, decode(plan), load(plan)]


def collect(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@torch.no_grad()
def seconds_of(call: Callable[[], Any], plan: Run, repeats: int | None = None) -> float:
    """Median after one warm-up."""
    call()
    times = []
    for _ in range(repeats or plan.repeats):
        synchronize(plan.device)
        start = time.perf_counter()
        call()
        synchronize(plan.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_peak(plan: Run) -> float:
    """Operations per second of a large square product in the working dtype."""
    a, b = (torch.randn(plan.matmul, plan.matmul, device=plan.device).to(plan.dtype) for _ in range(2))
    return 2 * plan.matmul**3 / seconds_of(lambda: a @ b, plan, 20)


def flops_of(section: dict[str, Any], size: Size) -> float:
    """Of the products in one pass, two for a multiply-add."""
    config = TransformerConfig.from_metadata({"transformer": section})
    assert config.video is not None and config.audio is not None
    d, a = config.video.width, config.audio.width
    v, n, s = size.video_tokens, size.audio_tokens, size.text_tokens
    linears = 28 * v * d**2 + 4 * s * d**2 + 28 * n * a**2 + 4 * s * a**2 + 8 * v * d * a + 8 * n * a**2
    attention = 4 * v**2 * d + 4 * v * s * d + 4 * n**2 * a + 4 * n * s * a + 8 * v * n * a
    return config.num_layers * (linears + attention)


def measure_passes(name: str, model: Any, size: Size, plan: Run, peak: float) -> list[str]:
    given = modalities_of(model, size, plan.device)
    states = states_of(model, size, plan.device)
    denoiser = guided_denoiser(model, size, plan.device, round(0.6 * model.num_blocks))
    call = DenoiseCall.at(torch.tensor([0.7, 0.0]), 0)
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    one = seconds_of(lambda: model(given["video"], given["audio"]), plan)
    top = torch.cuda.max_memory_allocated() / 1e9 if plan.device.type == "cuda" else 0.0
    guided = seconds_of(lambda: denoiser(X0Model(model, 1), states, call), plan, 2)
    with without("shared_prefix", "kept_text"):
        alone = seconds_of(lambda: denoiser(X0Model(model, 1), states, call), plan, 2)
    flops, weights = flops_of(size.section, size), sum(p.nbytes for p in model.parameters())
    return [
        name,
        f"{one:.3f}",
        f"{flops / 1e12:.2f}",
        f"{flops / one / 1e12:.2f}",
        f"{100 * flops / one / peak:.1f}",
        f"{guided:.3f}",
        f"{alone:.3f}",
        f"{weights / 1e9:.2f}",
        f"{top:.2f}",
    ]


@torch.no_grad()
def split(name: str, model: Any, size: Size, plan: Run) -> list[str]:
    """Kernel time by name; what is left of the wall time is gaps between kernels."""
    given = modalities_of(model, size, plan.device)
    on_gpu = plan.device.type == "cuda"
    model(given["video"], given["audio"])
    synchronize(plan.device)
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        model(given["video"], given["audio"])
        synchronize(plan.device)
        wall = (time.perf_counter() - started) * 1e6
    times, count = dict.fromkeys([*PHASES, "element-wise"], 0.0), 0
    for event in profiler.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if own > 0 and (not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA):
            times[phase_of(event.key)] += own
            count += event.count
    busy = sum(times.values())
    shares = [f"{100 * value / max(wall, busy):.1f}" for value in times.values()]
    return [name, *shares, f"{100 * max(wall - busy, 0) / max(wall, busy):.1f}", str(count)]


def phase_of(kernel: str) -> str:
    lowered = kernel.lower()
    return next((phase for phase, words in PHASES.items() if any(word in lowered for word in words)), "element-wise")


@torch.no_grad()
def decode(plan: Run) -> Table:
    """Streamed video decode."""
    table = Table("Streamed video decode", ("decoder, clip", "seconds", "peak GB"))
    on_gpu = plan.device.type == "cuda"
    sizes = {"512x768x121": (16, 16, 24), "1024x1536x121": (16, 32, 48)} if len(plan.clips) > 1 else {"tiny": (2, 2, 2)}
    for name in plan.models:
        config = published_config(name) if len(plan.clips) > 1 else small_config()
        decoder = random_decoder(config, plan.device, plan.dtype)
        for clip, shape in sizes.items():
            latent = torch.randn(1, config.latent_channels, *shape, device=plan.device).to(plan.dtype)

            def streamed(decoder: Any = decoder, latent: Any = latent) -> None:
                for _ in decoder.decode_streaming(latent):
                    pass

            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = seconds_of(streamed, plan, 1)
            top = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
            table.rows.append([f"{name}, {clip}", f"{seconds:.2f}", f"{top:.2f}"])
        del decoder
        collect(plan.device)
    return table


def load(plan: Run) -> Table:
    """Six blocks of the first model from a file in the system's cache: straight to the device in their final dtype."""
    table = Table("Load", ("model", "GB", "seconds", "GB/s"))
    name, section = next(iter(plan.models.items()))
    with tempfile.TemporaryDirectory() as folder:
        section = {**section, "num_layers": min(section["num_layers"], 6)}
        path = write_transformer(Path(folder) / "model.safetensors", section, plan.dtype)
        for _ in range(2):
            synchronize(plan.device)
            start = time.perf_counter()
            network = Checkpoint.open(path, verify=False).build("transformer", plan.dtype, plan.device)
            synchronize(plan.device)
            seconds = time.perf_counter() - start
            del network
        size = path.stat().st_size
        table.rows.append([name, f"{size / 1e9:.2f}", f"{seconds:.2f}", f"{size / seconds / 1e9:.2f}"])
    return table
