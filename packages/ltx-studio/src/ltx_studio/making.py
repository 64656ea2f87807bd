"""One clip of the studio, from a job to the files in its folder."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import LtxError
from ltx_pipelines.cli.progress import Reporter
from ltx_studio.files import Files
from ltx_studio.requests import resolve
from ltx_studio.store import Job

#: Takes the kind of an event and its facts: ``planned`` once, ``progress``, ``note``. What it raises ends the run.
Tell = Callable[[str, Mapping[str, Any]], None]

STAGE_FILE = "clip.stage1.safetensors"
THUMBNAIL, SHEET = "thumbnail.webp", "spritesheet.jpg"
PREVIEW_FRAMES = 8
PREVIEW_EVERY = 0.2  # seconds between two previews, at least


@dataclass
class StudioReporter(Reporter):
    """Tells each step."""

    tell: Tell = lambda kind, facts: None
    steps_total: int = 1
    steps_done: int = 0  # before this run
    is_long: bool = False  # the stages of events are windows
    _step_count: int = 0
    _last_preview: float = 0.0

    def event(self, event: Any) -> None:
        super().event(event)
        if event.step:
            if not self._step_count:  # what a worker before has made is behind us
                self._step_count = event.stage * event.total if self.is_long else self.steps_done
            self._step_count += 1
        self._tell(event.phase, 0.9 * self._step_count / self.steps_total, event)

    def wrote_frames(self, frames: int, total: int) -> None:
        self._tell("decode", 0.9 + 0.1 * frames / max(total, 1))

    def note(self, text: str, **fields: Any) -> None:
        self.tell("note", {"text": text})

    def _tell(self, phase: str, progress: float, event: Any = None) -> None:
        facts: dict[str, Any] = {"phase": phase, "progress": min(progress, 1.0)}
        if event is not None and event.step:
            elapsed = time.perf_counter() - self.started
            facts |= {"step": event.step, "total": event.total, "stage": event.stage + 1}
            facts["eta"] = round(elapsed / max(progress, 1e-6) * (1 - progress), 1)
            facts |= self._preview_facts(event)
        self.tell("progress", facts)

    def _preview_facts(self, event: Any) -> dict[str, Any]:
        """A strip of frames of what a step predicts; nothing where none is due."""
        now = time.perf_counter()
        if self.preview is None or now - self._last_preview < PREVIEW_EVERY or (latent := event.preview()) is None:
            return {}
        from ltx_studio.pictures import preview_strip

        self._last_preview = now
        frames = self.preview.frames(latent, PREVIEW_FRAMES)
        return {"preview": preview_strip(frames), "preview_frames": len(frames)}


def make_clip(
    job: Job, files: Files, defaults: Mapping[str, Any], ledgers: dict[str, Any], tell: Tell, keep_stage: bool = True
) -> dict[str, Any]:
    """Run one job to its files, on networks of earlier ones; what is known of it afterwards.

    ``defaults`` are options of requests that name none. Raises `LtxError` for whatever goes wrong.
    """
    from ltx_pipelines.cli.fields import from_json
    from ltx_pipelines.cli.job import Job as ClipJob
    from ltx_pipelines.cli.job import execute, kept_recipe, load_stage
    from ltx_pipelines.cli.session import open_session
    from ltx_pipelines.request import Output
    from ltx_pipelines.running.preview import find_map
    from ltx_pipelines.running.recipe import is_of

    given = from_json({**defaults, **resolve(job.request, files)}, "request")
    session = open_session(given, share=ledgers)
    folder = files.job(job.id)
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"clip{session.pipeline.suffix}"
    stage = folder / STAGE_FILE
    plan, resume = session.pipeline.plan(**session.request), None
    if stage.is_file() and is_of(kept_recipe(stage), plan):  # the worker before died after the first stage
        resume = load_stage(stage, plan)
    shape = plan.shape
    facts = {
        "pipeline": plan.pipeline,
        "seed": plan.seed,
        "width": shape.width,
        "height": shape.height,
        "frames": shape.frames,
        "fps": shape.fps,
        "seconds": round(shape.duration, 3),
        "file": output.name,
    }
    tell("planned", facts)
    steps = [one.steps * max(len(one.windows), 1) for one in plan.stages]
    reporter = StudioReporter(
        "quiet",
        preview=find_map(session.ledger),
        tell=tell,
        steps_total=sum(steps),
        steps_done=0 if resume is None else steps[0],
        is_long=plan.long is not None,
    )
    keep = keep_stage and len(plan.stages) > 1 and resume is None and plan.long is None
    asked = Output(overwrite=True, keep_latents=keep)
    execute(ClipJob(plan, session.ledger, output, asked, resume=resume), reporter)
    write_pictures(output, plan.has_video)
    for left in folder.iterdir():  # of the first stage, or by a worker that died
        if left.is_file() and left.name not in (output.name, THUMBNAIL, SHEET):
            left.unlink()
    return {**facts, "made_in": round(time.perf_counter() - reporter.started, 2), "bytes": output.stat().st_size}


def write_pictures(clip: Path, has_video: bool) -> None:
    """A thumbnail and a sheet of frames beside the clip."""
    if has_video:
        from ltx_studio.pictures import write_spritesheet, write_thumbnail

        write_thumbnail(clip, clip.with_name(THUMBNAIL))
        write_spritesheet(clip, clip.with_name(SHEET))


@contextlib.contextmanager
def failures_of_jobs() -> Iterator[None]:
    """Whatever goes wrong inside is the job's, as `LtxError`; the next one may be fine.

    What a run that did not end left behind is given back.
    """
    try:
        yield
    except LtxError:
        free()
        raise
    except Exception as error:
        free()
        raise LtxError(f"internal error: {type(error).__name__}: {str(error)[:300]}") from error


def free() -> None:
    """Give back memory that nothing holds."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
