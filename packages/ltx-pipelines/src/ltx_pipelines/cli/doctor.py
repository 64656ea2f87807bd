"""`ltx doctor`: what this machine can do, and why not where it cannot."""

from __future__ import annotations

import json
import platform
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ltx_core import __version__
from ltx_pipelines.cli.command import AS_JSON, Command
from ltx_pipelines.cli.errors import describe, missing

PACKAGES = ("torch", "transformers", "av", "safetensors", "accelerate", "mlx")
CODECS = ("libx264", "libx265", "aac")


def doctor(given: dict[str, Any]) -> None:
    """Ask every section, and show what it found as soon as it is known."""
    facts, as_json = {}, given.get("json", False)
    for section in (packages, models, disk, media, devices, precision, attention):  # those that import torch come last
        try:
            lines = section()
        except ModuleNotFoundError as error:
            lines = {"not known": describe(error)}
        facts[section.__name__] = lines
        if not as_json:
            print(section.__name__)
            print("\n".join(f"  {name:<22} {value}" for name, value in lines.items()))
    if as_json:
        print(json.dumps(facts, indent=2))


def packages() -> dict[str, str]:
    """Installed packages and their versions."""
    found = {"ltx": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = missing(package)
    return found


def devices() -> dict[str, str]:
    """Devices a model could run on, with free memory, and why the others cannot."""
    import os

    import torch

    from ltx_core.model.common.memory import free_bytes
    from ltx_pipelines.cli.progress import human_bytes
    from ltx_pipelines.running.placement import default_backend, default_device

    found = {}
    cpu = torch.device("cpu")
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    found["cpu"] = f"usable: {cores}, {human_bytes(free_bytes(cpu))} free"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = f"usable: {_cuda(index)}"
    else:
        why = "no NVIDIA driver or device was found" if torch.version.cuda else "this torch is built for the CPU only"
        found["cuda"] = f"not usable: {why}"
    if torch.backends.mps.is_available():
        found["mps"] = f"usable: {human_bytes(free_bytes(torch.device('mps')))} free"
    else:
        built = torch.backends.mps.is_built()
        found["mps"] = "not usable: " + ("macOS 12.3 or later is needed" if built else "this torch is built without it")
    found["mlx"] = _mlx()
    backend = default_backend()
    found["chosen by default"] = "mlx" if backend == "mlx" else default_device()
    return found


def _mlx() -> str:
    try:
        import_module("ltx_mlx.backend")
        mlx = import_module("mlx.core")
    except ModuleNotFoundError as error:
        return f"not usable: {describe(error)}"
    return f"usable: on {'the GPU' if mlx.metal.is_available() else 'the CPU, meant for tests'}"


def _cuda(index: int) -> str:
    import torch

    from ltx_pipelines.cli.progress import human_bytes

    device = torch.device("cuda", index)
    try:
        total = torch.ones(8, device=device).sum().item()  # a kernel that runs says more than a driver that answers
    except RuntimeError as error:
        return f"no: a kernel failed: {str(error).splitlines()[0]}"
    if total != 8:
        return "no: a kernel gave a wrong sum"
    major, minor = torch.cuda.get_device_capability(device)
    free, size = torch.cuda.mem_get_info(device)
    kinds = ["bfloat16"] if torch.cuda.is_bf16_supported() else ["float16 only"]
    kinds += ["fp8"] if (major, minor) >= (8, 9) else []
    name = torch.cuda.get_device_name(device)
    return f"{name}, compute {major}.{minor}, {human_bytes(free)} of {human_bytes(size)} free, {', '.join(kinds)}"


def precision() -> dict[str, str]:
    """Precision of networks on each device, and the reason."""
    from ltx_core.precision import fast, slowdown
    from ltx_pipelines.running.placement import default_device

    found = {}
    for kind in dict.fromkeys(("cpu", default_device())):
        chosen, ratio = fast(kind), slowdown("bfloat16", kind)
        speed = f"{ratio:.2g} times slower" if ratio > 1 else f"{1 / ratio:.2g} times faster"
        place = "processor" if kind == "cpu" else "device"
        used = "used" if chosen == "bfloat16" else "not used"
        found[kind] = f"{chosen} (bfloat16 on this {place}: {speed} than float32, {used})"
    return found


def attention() -> dict[str, str]:
    """Attention kernels, each tried on the default device."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    from ltx_core.precision import resolve
    from ltx_pipelines.running.placement import default_device

    device = default_device()
    probe = torch.zeros(1, 2, 16, 64, device=device, dtype=resolve("auto", device).dtype)
    found = {}
    kinds = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "plain": SDPBackend.MATH,
    }
    for name, kind in kinds.items():
        with warnings.catch_warnings(record=True) as reasons:
            warnings.simplefilter("always")
            try:
                with sdpa_kernel(kind):
                    scaled_dot_product_attention(probe, probe, probe)
                found[name] = f"usable on {device}"
            except RuntimeError as error:
                reason = str(reasons[-1].message if reasons else error).splitlines()[0].split(" (Triggered")[0]
                known = "it needs a CUDA device" if device == "cpu" else reason.rstrip(".")
                found[name] = f"not usable on {device}: {known}"
    found["triton"] = "usable: torch.compile can fuse" if find_spec("triton") else "not usable: triton is not installed"
    return found


def media() -> dict[str, str]:
    """Encoders of the media library."""
    import av

    found = {"av": f"usable: PyAV {av.__version__}"}
    for codec in CODECS:
        try:
            av.codec.Codec(codec, "w")
            found[codec] = "usable"
        except (av.FFmpegError, ValueError):
            found[codec] = "not usable: this build of FFmpeg has no such encoder"
    return found


def models() -> dict[str, str]:
    """Models that can be used now."""
    from ltx_pipelines.cli.models import place_of, rows

    return {row["model"]: place_of(row) for row in rows()}


def disk() -> dict[str, str]:
    """Room for results and for downloads."""
    import shutil

    from ltx_pipelines.cli.progress import human_bytes
    from ltx_pipelines.running.hub import cache_folder, free_disk_bytes

    here = Path.cwd()
    return {
        "results": f"{human_bytes(shutil.disk_usage(here).free)} free in {here}",
        "downloads": f"{human_bytes(free_disk_bytes())} free for {cache_folder()}",
    }


DOCTOR = Command("doctor", "What this machine can do: devices, memory, backends, disk.", {"json": AS_JSON}, doctor)
