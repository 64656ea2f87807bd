"""The precision that a device computes fast: the one policy behind every ``dtype="auto"``.

==========  ===========================================================================================
CUDA        bfloat16 where the card has units for it, float16 from compute capability 7.0 on, else float32
Apple mps   the first of bfloat16 and float16 that is not slower than float32 when tried, else float32
CPU         bfloat16 where the processor has units for it and is not slower when tried, else float32
other       float32
==========  ===========================================================================================

``bfloat16-widened`` keeps weight matrices in bfloat16 and computes in float32: each is widened when it is read. In half
the memory it gives what float32 gives, to the bit where the file holds bfloat16 and no adapter is fused.

To try is to time one convolution and one matrix product of a few milliseconds, once per process. This module imports
torch when it is first asked, so that request schemas can take the names from here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ltx_core.errors import check_known

if TYPE_CHECKING:
    import torch

DtypeName = Literal["auto", "bfloat16", "float32", "float16", "bfloat16-widened"]
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
WIDENED: DtypeName = "bfloat16-widened"
MIXED: dict[DtypeName, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}  # modes of autocast
SLOWEST = 1.2  # times as long as float32 that a narrower precision may take
CPU_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # flags of x86 and Arm in the kernel's list
CPUINFO = Path("/proc/cpuinfo")
ROUNDS = 3


@dataclass(frozen=True)
class Precision:
    """Precision of networks: ``name`` is never ``auto``. ``slowdown`` is set where the choice was not ours."""

    name: DtypeName
    slowdown: float = 1.0  # times as long as float32 takes on the device

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.float32 if self.stored is not None else getattr(torch, self.name)

    @property
    def stored(self) -> torch.dtype | None:
        """Of weight matrices, where it is another one than they are computed with."""
        import torch

        return torch.bfloat16 if self.name == WIDENED else None

    @property
    def mixed(self) -> str:
        """As `accelerate` calls training that computes in it: ``bf16``, ``fp16`` or ``no``."""
        return MIXED[self.name]

    @property
    def warning(self) -> str | None:
        """One line where this precision was asked for and is slower than float32 on this device."""
        if self.slowdown <= SLOWEST:
            return None
        return f"{self.name} is {self.slowdown:.2g} times slower than float32 here; --dtype auto takes the faster"


def computed_and_stored(dtype: torch.dtype | Precision | None) -> tuple[torch.dtype | None, torch.dtype | None]:
    """The type a network computes in, and that of its matrices where it is another; None keeps a file's."""
    return (dtype.dtype, dtype.stored) if isinstance(dtype, Precision) else (dtype, None)


def resolve(dtype: DtypeName | torch.dtype, device: torch.device | str) -> Precision:
    """The precision of a request on a device: ``auto`` by the table above, anything else as it was asked for.

    Raises `ConfigError` for an unknown name.
    """
    import torch

    device = torch.device(device)
    name: Any = str(dtype).removeprefix("torch.")
    check_known("dtype", name, DTYPE_NAMES)
    if name == "auto":
        return Precision(fast(device.type))
    return Precision(name, slowdown(name, device.type) if device.type == "cpu" and name != WIDENED else 1.0)


def resolve_mixed(mode: str | None, device: torch.device | str) -> Precision:
    """The precision of a mode of mixed-precision training: ``auto``, ``bf16``, ``fp16``, ``no`` or None."""
    names: dict[str, DtypeName] = {mixed: name for name, mixed in MIXED.items()}
    return resolve("auto" if mode == "auto" else names[mode or "no"], device)


@cache
def fast(kind: str) -> DtypeName:
    """The precision that ``auto`` means on a kind of device."""
    import torch

    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16"
        return "float16" if torch.cuda.get_device_capability() >= (7, 0) else "float32"
    candidates: dict[str, tuple[DtypeName, ...]] = {"mps": ("bfloat16", "float16"), "cpu": ("bfloat16",)}
    if kind == "cpu" and not cpu_has_units():
        return "float32"
    return next((name for name in candidates.get(kind, ()) if slowdown(name, kind) <= SLOWEST), "float32")


def cpu_has_units() -> bool:
    """Whether the processor multiplies bfloat16, by what torch and, on Linux, the kernel tell."""
    import torch

    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return kernel_lists_units() is not False


def kernel_lists_units() -> bool | None:
    """Whether the kernel's list of the processor's features has bfloat16; None where there is no list."""
    if not CPUINFO.exists():
        return None
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return not CPU_UNITS.isdisjoint(flags.split())


@cache
def slowdown(name: DtypeName, kind: str) -> float:
    """Time that a precision takes relative to float32, for the worse of a convolution and a matrix product.

    Infinite where the device cannot compute it at all.
    """
    import torch

    if name == "float32":
        return 1.0
    try:
        with torch.no_grad():
            return max(_ratio(work, name, kind) for work in (_convolution, _product))
    except (RuntimeError, TypeError):
        return float("inf")


def _convolution(dtype: torch.dtype, device: str) -> Callable[[], Any]:
    import torch

    x = torch.ones(1, 64, 4, 12, 12, dtype=dtype, device=device)
    weight = torch.ones(64, 64, 3, 3, 3, dtype=dtype, device=device)
    return lambda: torch.nn.functional.conv3d(x, weight)


def _product(dtype: torch.dtype, device: str) -> Callable[[], Any]:
    import torch

    x = torch.ones(384, 384, dtype=dtype, device=device)
    return lambda: x @ x


def _ratio(work: Callable[[torch.dtype, str], Callable[[], Any]], name: str, kind: str) -> float:
    """Shortest time over shortest time of some rounds, in turns, after a first call that prepares kernels."""
    import torch

    calls = [work(getattr(torch, one), kind) for one in (name, "float32")]
    seconds = [[_seconds(call, kind) for call in calls] for _ in range(ROUNDS + 1)][1:]
    narrow, wide = (min(column) for column in zip(*seconds, strict=True))
    return narrow / wide


def _seconds(call: Callable[[], Any], kind: str) -> float:
    started = time.perf_counter()
    result = call()
    if kind != "cpu":
        result.sum().item()  # waits for the device
    return time.perf_counter() - started
