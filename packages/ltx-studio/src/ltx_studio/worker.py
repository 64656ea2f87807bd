"""A worker process: keeps the networks of one device, makes one clip after the other, tells each step on its output.

It sleeps on its standard input; a line there means that there may be work, its end that the server is gone. So an idle
worker uses no time, and one without a server ends after its clip.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import LtxError
from ltx_pipelines.cli.progress import Reporter
from ltx_studio.files import Files
from ltx_studio.requests import resolved
from ltx_studio.store import SERVER_DIED, Job, Store

STAGE_FILE = "clip.stage1.safetensors"
THUMBNAIL, SHEET = "thumbnail.webp", "spritesheet.jpg"
PREVIEW_FRAMES = 8
PREVIEW_EVERY = 0.2  # seconds between two previews, at least


class Cancelled(Exception):
    """The job was asked to stop."""


@dataclass
class StudioReporter(Reporter):
    """Writes each step to the store and tells the server; stops the run when that was asked."""

    store: Store | None = None
    job: Job | None = None
    steps_total: int = 1
    steps_done: int = 0  # before this run
    is_long: bool = False  # the stages of events are windows
    _step_count: int = 0
    _last_preview: float = 0.0

    def event(self, event: Any) -> None:
        assert self.store is not None and self.job is not None
        super().event(event)
        if self.store.is_cancelled(self.job.id):
            raise Cancelled
        if event.step:
            if not self._step_count:  # what a worker before has made is behind us
                self._step_count = event.stage * event.total if self.is_long else self.steps_done
            self._step_count += 1
        self._tell(event.phase, 0.9 * self._step_count / self.steps_total, event)

    def wrote_frames(self, frames: int, total: int) -> None:
        assert self.store is not None and self.job is not None
        if self.store.is_cancelled(self.job.id):
            raise Cancelled
        self._tell("decode", 0.9 + 0.1 * frames / max(total, 1))

    def note(self, text: str, **fields: Any) -> None:
        if self.job is not None:
            say(self.job.id, "note", text=text)

    def _tell(self, phase: str, progress: float, event: Any = None) -> None:
        assert self.store is not None and self.job is not None
        self.store.advance(self.job.id, phase, min(progress, 1.0))
        facts: dict[str, Any] = {"phase": phase, "progress": round(min(progress, 1.0), 4)}
        if event is not None and event.step:
            elapsed = time.perf_counter() - self.started
            facts |= {"step": event.step, "total": event.total, "stage": event.stage + 1}
            facts["eta"] = round(elapsed / max(progress, 1e-6) * (1 - progress), 1)
            facts |= self._previewed(event)
        say(self.job.id, "progress", **facts)

    def _previewed(self, event: Any) -> dict[str, Any]:
        """A strip of frames of what a step predicts; nothing where none is due."""
        now = time.perf_counter()
        if self.preview is None or now - self._last_preview < PREVIEW_EVERY or (latent := event.preview()) is None:
            return {}
        from ltx_studio.pictures import preview_strip

        self._last_preview = now
        frames = self.preview.frames(latent, PREVIEW_FRAMES)
        return {"preview": preview_strip(frames), "preview_frames": len(frames)}


def say(job_id: str, kind: str, **facts: Any) -> None:
    """One event as a line on standard output."""
    with contextlib.suppress(BrokenPipeError):  # the server is gone; the clip is finished all the same
        sys.stdout.write(json.dumps({"id": job_id, "event": kind, **facts}) + "\n")
        sys.stdout.flush()


class Worker:
    """Makes the jobs of a store with models that stay in memory between them."""

    def __init__(self, name: str, data: Path, model: str | None, device: str | None) -> None:
        self.name, self.store, self.files = name, Store(data), Files(data)
        self.defaults = {key: value for key, value in (("model", model), ("device", device)) if value is not None}
        self.ledgers: dict[str, Any] = {}
        self.parent = os.getppid()

    def run(self) -> None:
        """Work until the server is gone. This is the only worker of its name: what that has, a dead one left."""
        for job in self.store.abandon(self.name, SERVER_DIED):
            if job.ended:
                self.files.remove_job(job.id)
            say(job.id, job.status, **({"error": job.error} if job.error else {}))
        say("", "ready")
        for _ in sys.stdin:
            self.drain()

    def drain(self) -> None:
        """Make every queued job, as long as the server is there."""
        while os.getppid() == self.parent and (job := self.store.claim(self.name)) is not None:
            say(job.id, "started")
            try:
                facts = self.make(job)
            except Cancelled:
                self._free()
                self._end(job, "cancelled")
            except LtxError as error:
                self._end(job, "failed", str(error))
            except Exception as error:  # whatever went wrong is this job's; the next one may be fine
                self._free()
                self._end(job, "failed", f"internal error: {type(error).__name__}: {str(error)[:300]}")
            else:
                self._end(job, "completed", facts=facts)

    def make(self, job: Job) -> dict[str, Any]:
        """Run one job to its files; what is known of it afterwards."""
        from ltx_pipelines.cli.fields import from_json
        from ltx_pipelines.cli.job import Job as ClipJob
        from ltx_pipelines.cli.job import execute, kept_recipe, load_stage
        from ltx_pipelines.cli.session import open_session
        from ltx_pipelines.pipeline import pipeline_named
        from ltx_pipelines.running.preview import find_map
        from ltx_pipelines.running.recipe import is_of

        given = from_json({**self.defaults, **resolved(job.request, self.files)}, "request")
        named = given.pop("pipeline", None)
        session = open_session(given, pipeline_named(named) if named else None, share=self.ledgers)
        folder = self.files.job(job.id)
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
        self.store.advance(job.id, "text", 0.0, facts)
        steps = [one.steps * max(len(one.windows), 1) for one in plan.stages]
        reporter = StudioReporter(
            "quiet",
            preview=find_map(session.ledger),
            store=self.store,
            job=job,
            steps_total=sum(steps),
            steps_done=0 if resume is None else steps[0],
            is_long=plan.long is not None,
        )
        keep = len(plan.stages) > 1 and resume is None and plan.long is None
        clip = ClipJob(plan, session.ledger, output, overwrite=True, keep_latents=keep, resume=resume)
        execute(clip, reporter)
        self._pictures(output, plan.has_video)
        for left in folder.iterdir():  # of the first stage, or by a worker that died
            if left.is_file() and left.name not in (output.name, THUMBNAIL, SHEET):
                left.unlink()
        return {**facts, "made_in": round(time.perf_counter() - reporter.started, 2), "bytes": output.stat().st_size}

    def _pictures(self, clip: Path, has_video: bool) -> None:
        """A thumbnail and a sheet of frames beside the clip."""
        if has_video:
            from ltx_studio.pictures import write_spritesheet, write_thumbnail

            write_thumbnail(clip, clip.with_name(THUMBNAIL))
            write_spritesheet(clip, clip.with_name(SHEET))

    def _end(self, job: Job, status: Any, error: str | None = None, facts: dict[str, Any] | None = None) -> None:
        if status != "completed":
            self.files.remove_job(job.id)
        if self.store.end(job.id, status, error, facts):
            say(job.id, status, **({"error": error} if error else {}))

    def _free(self) -> None:
        """Give back what a run that did not end left behind."""
        import gc

        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    """``python -m ltx_studio.worker NAME DATA [MODEL] [DEVICE]``: one worker, held to be the only one of its name."""
    import fcntl

    name, data = sys.argv[1], Path(sys.argv[2])
    model, device = (*(argument or None for argument in sys.argv[3:5]), None, None)[:2]
    data.mkdir(parents=True, exist_ok=True)
    with (data / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker of a server that died may still finish its clip
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        Worker(name, data, model, device).run()


if __name__ == "__main__":
    main()
