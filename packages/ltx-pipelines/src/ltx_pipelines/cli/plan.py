"""`ltx plan`: what a line would do and cost, without reading any weight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ltx_core.precision import WIDENED
from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.config import with_settings
from ltx_pipelines.cli.fields import every_option
from ltx_pipelines.cli.generate import ALL, ENHANCING, take_devices

if TYPE_CHECKING:
    from ltx_pipelines.planning.cost import Cost
    from ltx_pipelines.planning.plan import Plan, StagePlan
    from ltx_pipelines.utils.model_ledger import ModelLedger

LEFT_OUT = {"quiet", "count", "keep_latents", "contact_sheet", "first_stage", "absolute_paths", *ENHANCING}
ABOUT = """Show what would be done, and what it would cost.

Takes the options of `ltx generate`.
"""


def show(given: dict[str, Any]) -> None:
    """Plan a line and print the plan with its cost."""
    from ltx_pipelines.cli.generate import make_plan
    from ltx_pipelines.cli.progress import Reporter
    from ltx_pipelines.cli.session import open_session

    given = with_settings(given)
    size, mesh = take_devices(given)
    as_json = given.pop("json", False)
    session = open_session(given)
    reporter = Reporter("quiet" if as_json else "lines")
    if size > 1:
        from ltx_core.parallel.mesh import Devices, check_mesh

        session.ledger.devices = Devices(0, size, mesh, spread_over=check_mesh(mesh, size))
    plan = make_plan(session, given, reporter)
    from ltx_pipelines.planning.cost import cost_of  # torch, once the plan is known to be good

    cost = cost_of(plan, session.ledger)
    if as_json:
        print(json.dumps({"plan": json.loads(plan.to_json()), "cost": cost_json(cost)}, ensure_ascii=False))
    else:
        print_plan(plan, cost)
        for line in sharing_lines(plan, cost, session.ledger):
            print(line)
        if (slow := session.ledger.precision.warning) is not None:
            reporter.note(slow)


def cost_json(cost: Cost) -> dict[str, Any]:
    """A cost as plain values."""
    phases = [
        {
            "name": phase.name,
            "weight_bytes": dict(phase.weights),
            "activation_bytes": phase.work.activations,
            "peak_bytes": phase.peak,
            "flops": phase.work.flops,
            "sent_bytes": phase.work.sent,
        }
        for phase in cost.phases
    ]
    return {
        "policy": cost.policy,
        "peak_bytes": cost.peak,
        "flops": cost.flops,
        "relative": cost.relative,
        "phases": phases,
    }


def print_plan(plan: Plan, cost: Cost) -> None:
    """The plan as two tables: its stages, and what each phase holds and computes."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table

    from ltx_pipelines.cli.progress import human_bytes

    console = Console(highlight=False)
    shape = plan.shape
    size = f"{shape.width} x {shape.height}, " if plan.has_video else ""
    console.print(
        f"{plan.pipeline}: {size}{shape.frames} frames, {shape.duration:.2f} s at {shape.fps:g} fps", markup=False
    )
    console.print(f"model {plan.models.checkpoint}", markup=False, soft_wrap=True)
    widened = "computed in float32, weights kept in bfloat16 and widened layer by layer"
    console.print(widened if plan.dtype == WIDENED else f"computed in {plan.dtype}")
    console.print(f"seed {plan.seed}, prompt {plan.prompt!r}", markup=False, soft_wrap=True)
    names = ("stage", "size", "steps", "passes", "sampler", "streams", "conditions", "adapters")
    stages = Table(*(Column(name, overflow="fold") for name in names), box=SIMPLE)  # narrow terminals cut no name
    for index, stage in enumerate(plan.stages, 1):
        stages.add_row(str(index), *stage_row(stage))
    console.print(stages)
    phases = Table(*map(Column, ("phase", "weights", "activations", "together", "work")), box=SIMPLE)
    for phase in cost.phases:
        weights = human_bytes(sum(phase.weights.values()))
        share = f"{phase.work.flops / cost.flops:.0%}" if cost.flops and phase.work.flops else ""
        phases.add_row(phase.name, weights, human_bytes(phase.work.activations), human_bytes(phase.peak), share)
    console.print(phases)
    console.print(
        f"expected peak memory {human_bytes(cost.peak)} ({cost.policy} weights), "
        f"{cost.flops / 1e12:.3g} TFLOP, relative cost {cost.relative:.3g}",
        markup=False,
        soft_wrap=True,
    )


def sharing_lines(plan: Plan, cost: Cost, ledger: ModelLedger) -> Iterator[str]:
    """Lines on how several devices share the stages, and what each sends."""
    from ltx_core.model.transformer.config import TransformerConfig
    from ltx_pipelines.cli.progress import human_bytes

    if (devices := ledger.devices) is None:
        return
    weights = f"weights of large networks spread over {ledger.spread_over}" if ledger.spread_over > 1 else "all weights"
    yield f"all of this on each of {devices.size} devices, {weights}"
    config = TransformerConfig.from_metadata(ledger.config)
    sent = {phase.name: phase.work.sent for phase in cost.phases}
    for index, stage in enumerate(plan.stages, 1):
        if stage.steps:
            amount = human_bytes(sent[f"stage {index}"] // stage.steps)
            mesh = devices.shape(config.with_streams(*stage.streams), stage.passes())
            yield f"stage {index}: {mesh}, {amount} sent in a step"


def stage_row(stage: StagePlan) -> list[str]:
    """A stage in words."""
    streams = [name + (" (held)" if stream.frozen else "") for name, stream in stage.streams.items()]
    conditions = [condition.kind for stream in stage.streams.values() for condition in stream.conditions]
    size = f"{stage.shape.width} x {stage.shape.height}" if "video" in stage.streams else ""
    adapters = [f"{lora.path.rpartition('/')[2]} {lora.strength:g}" for lora in stage.loras]
    windows = f" x {len(stage.windows)} windows" if stage.windows else ""
    tiles = " x ".join(str(count) for count, _ in stage.tiles) if stage.tiles else ""
    counts = [f"{stage.steps}{windows}" + (f" x {tiles} tiles" if tiles else ""), str(stage.passes())]
    return [size, *counts, stage.sampler.kind, ", ".join(streams), ", ".join(conditions), ", ".join(adapters)]


OPTIONS = {name: one for name, one in ALL.items() if name not in LEFT_OUT}
PLAN = Command("plan", ABOUT, OPTIONS, show, "prompt", every_option)
