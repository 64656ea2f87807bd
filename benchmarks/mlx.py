"""The bundled model on MLX and on torch: one forward, a decode, a whole clip; on a Mac also speed and memory there.

On Linux preload a fast BLAS (see docs/mlx.md), or MLX's matrix products are some fifty times slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Options, Table, Timing, alternate
from ltx_core.model.transformer.modality import Modality
from ltx_core.networks import BuildSettings, find_backend
from ltx_core.precision import Precision
from ltx_pipelines.distilled import DistilledPipeline
from ltx_pipelines.running.model_files import find_model
from ltx_pipelines.utils.model_ledger import ModelLedger

BACKENDS = ("torch", "mlx")
PROMPT = "A red ball moves left to right."
COLUMNS = ("case", "torch s", "mlx s", "mlx / torch", "max abs diff")


def run(options: Options) -> Iterator[Table]:
    """Tables of torch and MLX side by side."""
    import mlx.core as mx

    on_gpu = mx.metal.is_available()
    precision = Precision("bfloat16" if on_gpu else "float32")
    torch_device = torch.device("mps" if on_gpu and torch.backends.mps.is_available() else "cpu")
    devices = {"torch": torch_device, "mlx": torch.device("cpu")}
    settings = {name: BuildSettings(precision, device) for name, device in devices.items()}
    place = f"MLX on the {'GPU' if on_gpu else 'CPU'}, torch on {torch_device.type}"
    table = Table(f"The bundled model, {place}, {precision.name}", COLUMNS)
    files = find_model("tiny").files
    checkpoint = ModelLedger(files, policy="resident", backend="mlx").checkpoint
    builders = {name: find_backend(name) for name in BACKENDS}

    forwards = {name: builders[name].transformer(checkpoint, ("video", "audio"), settings[name]) for name in BACKENDS}
    given = inputs(checkpoint.network_config("transformer"), 4 if options.quick else 7)
    arms: dict[str, Callable[[], Any]] = {
        name: (lambda network=adapted.network: network(**given)) for name, adapted in forwards.items()
    }
    table.rows.append(row("one forward", alternate(arms, options, measure_memory=False)))

    latent = torch.randn(1, 128, 3 if options.quick else 7, 8, 8)
    decoders = {name: builders[name].network("video_decoder", checkpoint, settings[name]) for name in BACKENDS}
    arms = {name: (lambda net=net: torch.cat(list(net.decode_frames(latent)))) for name, net in decoders.items()}
    table.rows.append(row("decode", alternate(arms, options, measure_memory=False)))

    frames = 9 if options.quick else 49
    clips = {name: clip(name, precision, devices[name], frames) for name in BACKENDS}
    table.rows.append(row(f"whole clip, {frames} frames", alternate(clips, options, measure_memory=False)))
    yield table
    if on_gpu:
        yield on_a_mac(clips["mlx"], forwards["mlx"].network, given)


def inputs(config: Any, latent_frames: int) -> dict[str, Modality]:
    """Random tokens of a clip of 256 x 256 pixels."""
    torch.manual_seed(0)
    given = {}
    for name, stream in config.streams.items():
        tokens = latent_frames * 64 if name == "video" else 8 * latent_frames
        given[name] = Modality(
            latent=torch.randn(1, tokens, stream.in_channels),
            timesteps=torch.full((1,), 0.7),
            positions=torch.rand(1, len(stream.max_pos), tokens, 2).sort().values,
            context=torch.randn(1, 64, config.caption_channels or stream.width),
        )
    return given


def clip(backend: Any, precision: Precision, device: torch.device, frames: int) -> Callable[[], Tensor]:
    """A distilled clip; the networks stay from one call to the next."""
    found = find_model("tiny")
    ledger = ModelLedger(found.files, precision.name, device, "resident", backend=backend)
    pipeline = DistilledPipeline(ledger, found.distilled_loras)

    def make() -> Tensor:
        video = pipeline(PROMPT, seed=1, num_frames=frames).video
        assert video is not None
        return torch.cat(list(video)).float().cpu()

    return make


def row(case: str, timing: Timing) -> list[str]:
    return [
        case,
        f"{timing.median('torch'):.3f}",
        f"{timing.median('mlx'):.3f}",
        f"{timing.ratio('mlx', 'torch'):.2f}",
        f"{timing.difference('mlx', 'torch'):.1e}",
    ]


def on_a_mac(make: Callable[[], Tensor], network: Any, given: dict[str, Modality]) -> Table:
    """Tokens a second, seconds of a clip, and the most memory it held."""
    import mlx.core as mx

    network(**given)
    start = time.perf_counter()
    network(**given)
    tokens = sum(modality.latent.shape[1] for modality in given.values()) / (time.perf_counter() - start)
    mx.reset_peak_memory()
    start = time.perf_counter()
    make()
    seconds, peak = time.perf_counter() - start, mx.get_peak_memory()
    limit = mx.device_info()["max_recommended_working_set_size"]
    title = f"MLX on {mx.device_info()['device_name']}"
    cells = (f"{tokens:.0f}", f"{seconds:.2f}", f"{peak / 1e9:.2f}", f"{limit / 1e9:.1f}")
    return Table(title, ("tokens/s", "clip s", "peak GB", "recommended GB"), [cells])
