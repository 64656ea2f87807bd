"""Whether a plan fits the memory there is, told before any weight is read; where it does not, the largest that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae.frames import SAFE_CELL_BYTES
from ltx_pipelines.planning.cost import STREAMED_BLOCKS, Cost, cost_of, cpu_runtime, decoded_seconds, writer_bytes
from ltx_pipelines.planning.windows import runs
from ltx_pipelines.planning.work import tokens_of

if TYPE_CHECKING:
    from ltx_pipelines.planning.plan import Plan
    from ltx_pipelines.utils.model_ledger import ModelLedger

SAFE_TOKEN_BYTES = 60  # a transformer's activations take less per token, pass, channel and byte of a value
SAFE_SECOND_BYTES = 64 * 2**20  # a second of sound takes less while it is decoded
SMALLEST = 64  # pixels of a side
TRIES = 3  # corrections of the size that is proposed


def check_memory(plan: Plan, ledger: ModelLedger) -> None:
    """Refuse a plan that needs more than the device has free, where networks compute and where they wait.

    Raises `ConfigError` with what is needed, what there is, and the largest size, length and policy that fit.
    """
    held = sum(ledger.weight_bytes().values()) if ledger.policy == "resident" and ledger.resident() else 0
    free = ledger.free_bytes() + held
    if bound_of(plan, ledger) < free:
        return
    cost = cost_of(plan, ledger)
    if cost.peak <= free:
        return
    fitting = "; ".join(fitting_changes(plan, ledger, cost, free)) or "no smaller one of this model fits"
    shape, needed = plan.shape, gigabytes(cost.peak)
    asked = f"{shape.width} x {shape.height} with {shape.frames} frames needs {needed} of memory"
    raise ConfigError(f"{asked}, {ledger.device} has {gigabytes(free)}: {fitting}; --force tries it anyway")


def bound_of(plan: Plan, ledger: ModelLedger) -> int:
    """Bytes that a plan surely does not exceed, from its shapes alone."""
    made = [run for stage in plan.stages for run in runs(stage)]
    tokens = max(run.passes() * sum(tokens_of(run, name, ledger) for name in run.streams) for run in made)
    section = ledger.config.get("transformer") or {}
    width = section.get("num_attention_heads", 32) * section.get("attention_head_dim", 128)
    shape, factors = plan.shape, ledger.scale_factors
    cells = (shape.height // factors.height + 1) * (shape.width // factors.width + 1)
    frames = cells * SAFE_CELL_BYTES + writer_bytes(shape)
    sound = int(SAFE_SECOND_BYTES * decoded_seconds(plan)) if "audio" in plan.decoded else 0
    work = tokens * width * ledger.dtype.itemsize * SAFE_TOKEN_BYTES + frames + sound
    return sum(ledger.weight_bytes().values()) + cpu_runtime(ledger) + work


def fitting_changes(plan: Plan, ledger: ModelLedger, cost: Cost, free: int) -> Iterator[str]:
    """Changes that would fit: another policy, fewer frames, a smaller picture; each alone."""
    blocks = (ledger.config.get("transformer") or {}).get("num_layers", 1)
    if replace(cost, policy="sequential").peak <= free < cost.peak:
        yield "--policy sequential fits"
    elif ledger.policy != "streamed" and _streamed(cost, blocks) <= free:
        yield "--policy streamed fits"
    factor, frames = ledger.scale_factors.time, plan.shape.frames
    share = free / cost.peak
    for _ in range(TRIES):
        fewer = int((frames - 1) * share) // factor * factor + 1
        if fewer < frames and cost_of(resize(plan, fewer, 1.0), ledger).peak <= free:
            yield f"{fewer} frames fit"
            break
        share *= 0.8
    side = (free / cost.peak) ** 0.5
    for _ in range(TRIES):
        smaller = resize(plan, frames, side)
        if min(smaller.shape.height, smaller.shape.width) >= SMALLEST and cost_of(smaller, ledger).peak <= free:
            yield f"{smaller.shape.width} x {smaller.shape.height} fits"
            break
        side *= 0.85


def resize(plan: Plan, frames: int, side: float) -> Plan:
    """A plan of other sizes, to be costed and not run: every stage of the share of its sides and frames."""
    stages = []
    for stage in plan.stages:
        shape = stage.shape
        share = (frames - 1) / max(plan.shape.frames - 1, 1)
        count = max(round((shape.frames - 1) * share / 8), 1) * 8 + 1 if shape.frames > 1 else 1
        height, width = (max(int(one * side) // SMALLEST, 1) * SMALLEST for one in (shape.height, shape.width))
        stages.append(replace(stage, shape=shape._replace(frames=count, height=height, width=width), delivered=None))
    return plan.with_(stages=tuple(stages))


def _streamed(cost: Cost, blocks: int) -> int:
    """The peak with two blocks of the transformer on the device."""
    share = min(STREAMED_BLOCKS, blocks) / blocks
    return (
        max(phase.peak - int(phase.weights.get("transformer", 0) * (1 - share)) for phase in cost.phases) + cost.runtime
    )


def gigabytes(count: int) -> str:
    """Bytes in GB."""
    return f"{count / 1e9:.3g} GB"
