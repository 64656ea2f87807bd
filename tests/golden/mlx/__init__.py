"""Golden operations that MLX networks run, one module per area as in ``tests.golden.operations``.

``OPERATIONS`` of an area are those whose networks are MLX's; ``SHARED`` names those that no network of a backend takes
part in. An operation in neither is unknown and fails.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace

from tests.golden.case import Case
from tests.golden.operations import Operation
from tests.golden.operations import find_operation as find_torch_operation

AREAS = ("transformer", "video_vae", "audio_vae", "upsampler", "text_encoder", "pipelines")


def find_operation(case: Case) -> Operation | None:
    """The operation of a case on MLX; None when it is not known here."""
    if importlib.util.find_spec(f"{__name__}.{case.area}") is None:
        return None
    module = importlib.import_module(f"{__name__}.{case.area}")
    if case.key in module.SHARED:
        return find_torch_operation(case)
    operation: Operation | None = module.OPERATIONS.get(case.key)
    return operation


FACTOR = 10  # of a case's tolerance, which holds for torch's kernels
LEAST_RTOL = 1e-4
#: Cases that need more than that, and why: a relative tolerance.
WIDER: dict[str, tuple[float, str]] = {
    "vocoder_bwe_published_geometry_bf16": (2**-8, "one output is rounded to bfloat16: a step of the last bit"),
}


def relaxed(case: Case) -> Case:
    """The case with the tolerances that MLX is held to."""
    rtol, _ = WIDER.get(case.name, (LEAST_RTOL, ""))
    header = {**case.header, "rtol": max(FACTOR * case.rtol, rtol), "atol": FACTOR * case.atol}
    return replace(case, header=header)
