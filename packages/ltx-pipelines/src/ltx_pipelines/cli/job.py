"""One generation from plan to file: run, follow, write, say what came of it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltx_core.errors import ConfigError, MediaError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.model.common.memory import peak_bytes
from ltx_core.textfiles import parse_json
from ltx_media.contact_sheet import write_rows
from ltx_media.files import replacing
from ltx_pipelines.cli.progress import Reporter, human_bytes
from ltx_pipelines.planning.cost import check_memory
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.request import Output
from ltx_pipelines.running.engine import generate
from ltx_pipelines.running.generation import Generation, write
from ltx_pipelines.running.kept import kept_encoding, what_is_kept
from ltx_pipelines.running.long import pieces
from ltx_pipelines.running.long_clip import generate_windows
from ltx_pipelines.running.output import LEFT_OUT, VIDEO, check_beside, check_free, check_output, latents_path
from ltx_pipelines.running.recipe import recipe_for
from ltx_pipelines.running.stages import Event
from ltx_pipelines.running.unfinished import Unfinished
from ltx_pipelines.utils.media_io import RECIPE_KEY, read_audio, read_frames, write_contact_sheet
from ltx_pipelines.utils.model_ledger import ModelLedger

RNG_STATE = "rng_state"


@dataclass(frozen=True)
class Job:
    """A plan to run, the file to write, and what is asked of it besides.

    ``request`` is kept in the recipe; ``resume`` holds stages that are done.
    """

    plan: Plan
    ledger: ModelLedger
    output: Path
    asked: Output
    request: Mapping[str, Any] | None = None
    resume: Generation | None = None

    @property
    def contact_sheet(self) -> Path | None:
        return Path(self.asked.contact_sheet) if self.asked.contact_sheet else None

    @property
    def keeps_latents(self) -> bool:
        return self.asked.keep_latents or self.asked.first_stage

    @property
    def delivered(self) -> Job:
        """The job with the plan of what is delivered: of the first stage alone, where it stops after that."""
        return replace(self, plan=replace(self.plan, stages=self.plan.stages[:1])) if self.asked.first_stage else self


def execute(job: Job, reporter: Reporter) -> Path:
    """Run a job to its file. Whatever stops it, no part of a file is left behind."""
    first, delivered = replace(job.plan, stages=job.plan.stages[:1]), job.delivered
    frames, hdr = delivered.plan.shape.frames, delivered.plan.hdr is not None
    check_output(delivered.output, delivered.plan.has_video, job.asked.overwrite, hdr, frames)
    sounding = "audio" in delivered.plan.decoded or delivered.plan.audio == "source"
    if (lost := LEFT_OUT.get(job.output.suffix.lower())) and sounding and delivered.plan.hdr is None:
        reporter.note(f"{job.output.name}: {lost}")
    check_beside(job.output, job.contact_sheet, job.asked.crf, delivered.plan.hdr is not None)
    for path in filter(None, (job.contact_sheet, latents_path(job.output) if job.keeps_latents else None)):
        check_free(path, job.asked.overwrite)
    if not job.asked.force:
        check_memory(delivered.plan, job.ledger)
    helping = check_devices(job)
    if job.ledger.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(job.ledger.device)
    if (slow := job.ledger.precision.warning) is not None:
        reporter.note(slow)
    with reporter.running():
        resume = job.resume
        if job.keeps_latents:
            resume = follow(first, job, reporter, decode=False)
            if not helping:
                keep_stage(resume, job)
        recipe = recipe_of(delivered)
        total = delivered.plan.shape.frames
        watch = partial(_count, total=total, reporter=reporter)
        if delivered.plan.long is not None and delivered.output.suffix.lower() in VIDEO:
            write_long(delivered, recipe, reporter)
        else:
            generation = follow(delivered.plan, job, reporter, resume=resume)
            if helping:
                deque(generation.video or (), maxlen=0)  # decoded with the others, written by the first
                return job.output
            write(generation, delivered.output, recipe, watch, job.asked.crf)
        if job.contact_sheet is not None:
            write_sheet(delivered)
        seconds = reporter.finish()
    _summarize(delivered, reporter, seconds)
    return job.output


def recipe_of(job: Job) -> dict[str, Any]:
    """The recipe that goes into its file."""
    return recipe_for(job.output, job.plan, job.request, str(job.ledger.device), job.asked.absolute_paths)


def check_devices(job: Job) -> bool:
    """Whether another process writes the clip. Raises `ConfigError` for one that several cannot make."""
    if (devices := job.ledger.devices) is None:
        return False
    if job.plan.long is not None or job.ledger.backend != "torch":
        what = "a long clip is made window by window" if job.plan.long is not None else "mlx computes on one device"
        raise ConfigError(f"--devices is {devices.size}, but {what}; leave it out")
    if job.ledger.policy == "streamed" and (count := job.ledger.spread_over) > 1:
        raise ConfigError(
            f"weights are spread over {count} devices and streamed; leave fsdp out of --mesh to stream them"
        )
    return devices.helping


def follow(
    plan: Plan, job: Job, reporter: Reporter, decode: bool = True, resume: Generation | None = None
) -> Generation:
    """Run a plan, each event reported; what the last event carries."""
    generation = None
    events = cast(Generator[Event, None, None], generate(plan, job.ledger, decode=decode, resume=resume))
    with closing(events):
        for event in events:
            reporter.event(event)
            generation = event.generation or generation
    assert generation is not None
    return generation


def write_long(job: Job, recipe: Mapping[str, Any], reporter: Reporter) -> None:
    """A long clip to its file, window by window; what is whole is kept when it is stopped, and gone on from."""
    plan, encoding = job.plan, kept_encoding(job.plan, job.asked.crf, job.output)
    store, total = Unfinished(job.output, plan, encoding, job.asked.overwrite), len(plan.stages[0].windows)
    done = store.state.done
    if done:
        reporter.note(f"{done} of {total} windows are in {store.folder}, going on", done=done, total=total)
    events = cast(Generator[Event, None, None], generate_windows(plan, job.ledger, store.state))
    try:
        with closing(events):
            for event in events:
                reporter.event(event)
                if event.media is not None:
                    before = pieces(plan.stages[0])[event.stage].frames[0]
                    store.write(
                        event.stage,
                        event.media,
                        partial(_count, total=plan.shape.frames, reporter=reporter, done=before),
                    )
                if event.state is not None:
                    store.commit(event.state)
        store.finish({RECIPE_KEY: json.dumps(recipe, ensure_ascii=False)})
    except BaseException:
        store.close()
        if store.state.done:
            reporter.note(f"{store.state.done} of {total} windows are kept in {store.folder}; the same command goes on")
        raise


def write_sheet(job: Job) -> None:
    """The contact sheet of a clip that has been written."""
    assert job.contact_sheet is not None
    frames, sound = read_frames(job.output), read_audio(job.output)
    write_contact_sheet(job.contact_sheet, frames, job.plan.shape.fps, sound, job.plan.prompt)


def write_shared_sheet(path: Path, jobs: Sequence[Job]) -> None:
    """A row of frames of each of several clips, under its seed."""
    rows = []
    for job in jobs:
        count = job.delivered.plan.shape.frames
        picks = {round(index * (count - 1) / 5) for index in range(6)}
        frames = [frame for index, frame in enumerate(read_frames(job.output)) if index in picks]
        rows.append((f"seed {job.plan.seed}   {job.output.name}", frames))
    write_rows(path, rows)


def keep_stage(generation: Generation, job: Job) -> Path:
    """Write the first stage's latents, the generator's state and the whole plan with its files beside the clip."""
    path = latents_path(job.output)
    assert generation.rng_state is not None
    tensors = {**generation.stages[0], RNG_STATE: generation.rng_state}
    recipe = recipe_of(job)
    with replacing(path) as temporary:
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(own, temporary, metadata={name: json.dumps(recipe[name]) for name in ("plan", "files")})
    return path


def kept_recipe(path: Path) -> dict[str, Any]:
    """The plan and the files of a first stage, as `keep_stage` wrote them. Raises `MediaError`."""
    if not path.is_file():
        raise MediaError(f"{path} does not exist, expected the first stage kept by --keep-latents or --first-stage")
    metadata = SafetensorsFile(path).metadata
    if "plan" not in metadata:
        raise MediaError(f"{path} holds no plan, expected the first stage of a clip")
    return {name: parse_json(metadata.get(name, "{}"), f"{path}: {name}") for name in ("plan", "files")}


def load_stage(path: Path, plan: Plan) -> Generation:
    """The finished first stage of a plan, as `keep_stage` wrote it."""
    tensors = load_file(path)
    rng_state = tensors.pop(RNG_STATE, None)
    return Generation(plan, (tensors,), rng_state=rng_state)


def _count(chunks: Iterable[Tensor], total: int, reporter: Reporter, done: int = 0) -> Iterator[Tensor]:
    for chunk in chunks:
        done += chunk.shape[0]
        reporter.wrote_frames(done, total)
        yield chunk


def _summarize(job: Job, reporter: Reporter, seconds: float) -> None:
    """Say what came of a run: what is kept, the file, its time, the speed, the peak of memory."""
    shape, plan, device = job.plan.shape, job.plan, job.ledger.device
    if (kept := what_is_kept(plan, job.ledger.scale_factors.time)) is not None:
        reporter.note(kept, kept=kept)
    peak = peak_bytes(device)
    if reporter.style == "json":
        facts = {"path": str(job.output), "seconds": round(seconds, 3), "peak_bytes": peak}
        reporter.emit("done", **facts, seed=plan.seed, steps=reporter.steps)
        return
    if plan.has_video:
        what = f"{shape.frames} frames of {shape.width} x {shape.height}, {shape.duration:.2f} s at {shape.fps:g} fps"
        speed = f"{shape.frames / seconds:.3g} frames/s"
    else:
        what, speed = f"{shape.duration:.2f} s of sound", f"{shape.duration / seconds:.3g} s of sound per second"
    where = "the process" if device.type == "cpu" else str(device)
    steps = f"{reporter.steps} steps, " if reporter.steps else ""
    reporter.note(f"wrote {job.output}: {what}, seed {plan.seed}")
    reporter.note(f"{seconds:.1f} s, {steps}{speed}, peak memory {human_bytes(peak)} ({where})")
