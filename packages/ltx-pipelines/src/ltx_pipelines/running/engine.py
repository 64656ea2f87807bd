"""The one engine: runs any plan and yields what happens, so that progress, previews and cancelling need no hooks.

::

    prompts -> contexts -> stage 1 { encode conditions, noise, denoise } -> enlarge -> stage 2 { ... } -> decode

How a stage begins and steps is in `ltx_pipelines.running.stages`. One with windows does that for each of them and joins
the results (`ltx_pipelines.running.stage_inputs`). The windows of a long clip go on from each other
(`ltx_pipelines.running.long_clip`).
The last event carries a `Generation`, whose frames are decoded as they are pulled. Closing the iterator between two
events cancels the run; nothing outlives it but the networks the ledger keeps.
"""

from __future__ import annotations

from collections.abc import Iterator

from ltx_pipelines.planning.layout import runs
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.running.decoding import decode_latents
from ltx_pipelines.running.generation import Generation
from ltx_pipelines.running.long_clip import generate_long
from ltx_pipelines.running.stage_inputs import StageInputs, StageResult, carry_over, join_windows, window_inputs
from ltx_pipelines.running.stages import Event, run_apart, run_of, run_stage
from ltx_pipelines.running.texts import Contexts, read_contexts
from ltx_pipelines.utils.model_ledger import ModelLedger


def generate(plan: Plan, ledger: ModelLedger, decode: bool = True, resume: Generation | None = None) -> Iterator[Event]:
    """Run ``plan`` on the networks of ``ledger``.

    ``decode`` False leaves the latents undecoded. ``resume`` gives the first stages already done; what follows is the
    same as in one go.
    """
    if plan.long is not None:
        yield from generate_long(plan, ledger, decode)
        return
    done: list[StageResult] = []
    if resume is not None and resume.rng_state is not None:
        # Copies, since sums of float32 follow the alignment of memory, which that of a mapped file may not have. Their
        # precision is the session's, which may have been chosen anew.
        device, dtype = ledger.device, ledger.dtype
        done = [{name: one.to(device, dtype, copy=True) for name, one in stage.items()} for stage in resume.stages]
    yield Event("text")
    if not ledger.texts.know(plan.prompts) and len(done) < len(plan.stages):
        ledger.expect_transformer(tuple(plan.stages[len(done)].streams))
    positive, *negative = contexts_of(plan, ledger)
    run = run_of(plan, ledger, (positive, negative[0] if negative else None))
    if resume is not None and resume.rng_state is not None:
        run.noise.set_state(resume.rng_state)
    upsampled = None
    for index, stage in list(enumerate(plan.stages))[len(done) :]:
        inputs = StageInputs()
        if index:
            larger, rate = plan.growth(index)
            if larger or rate > 1:
                yield Event("upsample", index)
            inputs = carry_over(plan, index, done[index - 1], ledger)
            upsampled = inputs.latents["video"] if larger else upsampled
        if stage.apart:
            done.append((yield from run_apart(stage, index, inputs, run)))
            continue
        results = []
        for number, part in enumerate(runs(stage)):
            window = stage.windows[number] if stage.windows else None
            begins = window_inputs(inputs, window, ledger.scale_factors.time) if window else inputs
            results.append((yield from run_stage(part, index, begins, run)))
        done.append(join_windows(stage, results, inputs) if stage.windows else results[0])
    run.watch.check(plan, ledger)
    generation = Generation(plan, tuple(done), upsampled, run.noise.get_state())
    if decode:
        yield Event("decode", len(plan.stages) - 1)
        generation = decode_latents(generation, run)
    yield Event("done", len(plan.stages) - 1, generation=generation)


def contexts_of(plan: Plan, ledger: ModelLedger) -> list[Contexts]:
    """Contexts of the prompt, and of the negative prompt where guidance is used."""
    if plan.text_embeddings is not None:
        return [read_contexts(plan.text_embeddings, ledger.device, ledger.dtype)]
    return ledger.texts.contexts(plan.prompts)
