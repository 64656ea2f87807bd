"""The eval of a model: clips from the pipelines, examined, with a table, records and contact sheets.

Needs ltx-pipelines, which brings the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ltx_core.errors import ConfigError
from ltx_tiny.eval.chains import Chains, FirstFrame, as_audio, as_video, keep_first_frames
from ltx_tiny.eval.detectors import Result
from ltx_tiny.eval.questions import (
    Answer,
    Audio,
    Generate,
    Question,
    Trip,
    Video,
    ceiling,
    questions,
    reconstruct,
    take,
)
from ltx_tiny.eval.report import Average, Row, Spread, figures, summarise, table, write_json
from ltx_tiny.eval.sheet import Clip, write_sheet

if TYPE_CHECKING:
    from ltx_core.types import VideoPixelShape
    from ltx_pipelines.pipeline import Pipeline
    from ltx_pipelines.running.model_files import FoundModel
    from ltx_pipelines.utils.model_ledger import ModelLedger

ON_SHEET = 16  # clips
OVERLAP = ("lowest", "5%")
FIRST_FRAMES_OF = 4  # one question in so many is also asked with its first frame given
Item = TypeVar("Item")
Track = Callable[[Iterable[Item], str, int], Iterator[Item]]  # items, what they are, how many


def distilled_pipeline(ledger: ModelLedger, found: FoundModel) -> Pipeline:
    """Two stages with the distilled adapter in both."""
    from ltx_pipelines.distilled import DistilledPipeline

    return DistilledPipeline(ledger, found.distilled_loras)


def two_stages(ledger: ModelLedger, found: FoundModel) -> Pipeline:
    """A guided stage, refined with the distilled adapter: what `ltx generate` and `ltx demo` do."""
    from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline

    return TI2VidTwoStagesPipeline(ledger, (), found.distilled_loras)


def guided_pipeline(ledger: ModelLedger, found: FoundModel) -> Pipeline:
    """One guided stage at full size."""
    from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline

    return TI2VidOneStagePipeline(ledger)


PATHS: dict[str, Callable[[ModelLedger, FoundModel], Pipeline]] = {
    "distilled": distilled_pipeline,
    "two-stages": two_stages,
    "guided": guided_pipeline,
}


def generator(pipeline: Pipeline) -> Generate:
    """The function that the eval calls: ``(prompt, seed) -> (video, audio)`` with the model's own settings."""

    def generate(prompt: str, seed: int, **given: Any) -> tuple[Video, Audio]:
        made = pipeline(prompt=prompt, seed=seed, **given)
        assert made.video is not None and made.audio is not None
        return as_video(made.video), as_audio(made.audio)

    return generate


@dataclass
class Record:
    """Findings of an eval so far; of clips only those that go on a sheet."""

    results: dict[str, list[Result]] = field(default_factory=dict)
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    clips: dict[str, list[Clip]] = field(default_factory=dict)
    trips: list[Trip] = field(default_factory=list)
    first_frames: dict[str, list[FirstFrame]] = field(default_factory=dict)

    def add(self, path: str, answer: Answer) -> None:
        """One more clip of a path."""
        self.results.setdefault(path, []).append(answer.result)
        self.details.setdefault(path, []).append(answer.to_json())
        if len(clips := self.clips.setdefault(path, [])) < ON_SHEET:
            clips.append(answer.clip)

    def rows(self) -> list[Row]:
        """The figures of the chains and of given first frames."""
        heard = Spread.of_lags([lag for trip in self.trips for lag in trip.heard_ms])
        alone = f"median {heard.median:.1f}, 95% {heard.tail:.1f} (the detector)"
        shifts = Spread.of_lags([lag for trip in self.trips for lag in trip.shifts_ms])
        rows = [
            Row("video VAE, PSNR in dB", "exact", Average.of([trip.psnr_db for trip in self.trips])),
            Row("video VAE, outline, overlap", "-", Spread.of_ties([trip.outline for trip in self.trips]), 3, OVERLAP),
            Row("video VAE, outline, jitter", "-", Spread.of_jitters([trip.jitter for trip in self.trips]), 4),
            Row(
                "audio VAE and vocoder, log-mel error",
                "0",
                Average.of([trip.log_mel_error for trip in self.trips], max),
                digits=3,
                ends=("highest", "95%"),
            ),
            Row("audio VAE and vocoder, onset shift in ms", alone if heard.count else "-", shifts),
        ]
        for path, found in self.first_frames.items():
            chain = Average.of([one.chain_db for one in found])
            best = f"{chain.mean:.1f}, lowest {chain.worst:.1f} (the VAE)" if found else "-"
            rows.append(Row(f"given first frame, {path}, PSNR in dB", best, Average.of([one.psnr_db for one in found])))
        return rows

    def table(self) -> str:
        """Everything there is, as Markdown."""
        summaries = {path: summarise(results) for path, results in self.results.items()}
        return f"{table(summaries)}\n\n{figures(self.rows())}"

    def write(self, out: Path) -> None:
        """``eval.md``, ``eval.json`` and a sheet per path, each whole or not at all."""
        from ltx_media.files import replacing

        summaries = {path: summarise(results) for path, results in self.results.items()}
        details: dict[str, list[Any]] = {**self.details, "chains": [trip.to_json() for trip in self.trips]}
        for name, kept in self.first_frames.items():
            details[f"first frames, {name}"] = [one.to_json() for one in kept]
        with replacing(out / "eval.json") as path:
            write_json(path, summaries, details, self.rows())
        with replacing(out / "eval.md") as path:
            path.write_text(self.table() + "\n", encoding="utf-8")
        for name, clips in self.clips.items():
            with replacing(out / f"{name}.png") as path:
                write_sheet(path, clips, across=2)


def measure(model: str, paths: Sequence[str], count: int, out: Path, **session: Any) -> str:
    """Run the eval, write ``eval.md``, ``eval.json`` and a sheet per path to ``out``, and return the table.

    ``session`` goes to the `ModelLedger`, such as ``backend`` and ``quantization``.

    Stopped, it leaves what was measured until then. Raises `ConfigError` for a path there is not.
    """
    if unknown := [name for name in paths if name not in PATHS]:
        raise ConfigError(f"path is {unknown[0]!r}, expected one of {', '.join(PATHS)}")
    if count < 1:
        raise ConfigError(f"count is {count}, expected at least 1")
    record = Record()
    try:
        with progress() as track:
            for _ in sit(model, paths, questions(count), record, track, session):
                record.write(out)
    except BaseException:
        if record.results:
            record.write(out)
        raise
    return record.table()


def sit(
    model: str,
    paths: Sequence[str],
    asked: Sequence[Question],
    record: Record,
    track: Track[Any],
    session: Mapping[str, Any],
) -> Iterator[None]:
    """Every part of the eval, into ``record`` as it comes; yields at the end of each."""
    from ltx_pipelines.running.model_files import find_model
    from ltx_pipelines.utils.model_ledger import ModelLedger

    found = find_model(model)
    ledger = ModelLedger(found.files, **session)
    pipelines = {name: PATHS[name](ledger, found) for name in paths}
    shape: VideoPixelShape = next(iter(pipelines.values())).plan(prompt=asked[0].caption.text).shape
    for answer in track(ceiling(asked, shape.frames, shape.height, shape.width), "renderer", len(asked)):
        record.add("renderer", answer)
    yield
    chains = Chains(ledger)
    trips = reconstruct((question.scene for question in asked), chains.video, chains.audio)
    for trip in track(trips, "there and back", len(asked)):
        record.trips.append(trip)
    yield
    for name, pipeline in pipelines.items():
        generate = generator(pipeline)
        for answer in track(take(generate, asked, shape.fps), name, len(asked)):
            record.add(name, answer)
        yield
        some = asked[::FIRST_FRAMES_OF]
        kept = keep_first_frames(generate, some, chains, (shape.height, shape.width))
        for first_frame in track(kept, f"{name}, first frame", len(some)):
            record.first_frames.setdefault(name, []).append(first_frame)
        yield


@contextmanager
def progress() -> Iterator[Track[Any]]:
    """A bar on standard error for each part, with the time it will still take."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def track(items: Iterable[Item], what: str, count: int) -> Iterator[Item]:
            yield from bars.track(items, total=count, description=what)

        yield track
