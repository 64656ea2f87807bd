"""Many jobs on a Ray cluster: each is done once, whatever dies, and with the results of a local run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx_core.errors import ConfigError, LtxError
from ltx_core.parallel import executor
from ltx_core.parallel.executor import Cluster, connected, workers
from ltx_core.types import Audio
from ltx_media.containers import read_recipe
from ltx_pipelines.cli.app import run
from ltx_pipelines.cli.progress import Overview
from ltx_pipelines.utils.media_io import read_audio, read_frames, write_video
from ltx_studio.store import Job, Store
from ltx_trainer.precomputed import read_inputs, read_record
from tests.golden.case import REPOSITORY, TINY_CHECKPOINT
from tests.ray_workers import Squares, faulty, unable
from tests.studio_server import ask, served

TWO = Cluster("", 2)
CLIP = {"pipeline": "one-stage", "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine, whose workers find what this process finds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with connected("local"):
            yield


def actors_of(driver: int, called: str = "ray::Actor") -> list[int]:
    """The processes of workers on a cluster that a process has started; Ray calls them by what they do."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")

    def above(process: int) -> Iterator[int]:
        while process := parents.get(process, 0):
            yield process

    return [process for process, name in names.items() if name.startswith(called) and driver in above(process)]


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def ran(jobs: Iterable[int], make: Callable[[], Any], where: Cluster | None = None) -> list[tuple[int, Any]]:
    with workers(make, where) as run:
        return list(run(jobs))


def test_every_job_is_done_once_whoever_dies(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "2").touch()
    (tmp_path / "3").touch()
    found = ran(range(12), partial(Squares, tmp_path, 4), TWO)
    assert Counter(job for job, _ in found) == Counter(range(12))
    results = dict(found)
    assert [results[job][0] for job in (0, 2, 6, 8, 10)] == [0, 4, 36, 64, 100]
    assert all(str(results[job]) == f"{job} is odd" for job in range(1, 12, 2))
    assert str(results[4]).startswith("3 workers died at it: The actor died unexpectedly")
    assert os.getpid() not in {result[1] for result in results.values() if isinstance(result, tuple)}
    here = dict(ran(range(4), partial(Squares, tmp_path, -1)))
    assert here[2] == (4, os.getpid()) and str(here[3]) == "3 is odd"


def test_what_no_worker_can_do_ends_the_run(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "ATTEMPTS", 1)
    with pytest.raises(LtxError, match=r"^no worker can be started: .*no weights on this machine"):
        ran([1], unable, Cluster("", 1))
    with pytest.raises(ZeroDivisionError, match="a mistake in the program"):
        ran([1], faulty, Cluster("", 1))


def test_without_ray_a_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^Ray is not installed: `pip install \"\.\[ray\]\"` in a clone of LTX$"):
        ran([1], unable, TWO)


def documented(pattern: str) -> str:
    """A line of the documentation."""
    (line,) = re.findall(f"^ltx ({pattern})$", (REPOSITORY / "docs" / "scale.md").read_text(), re.MULTILINE)
    return line


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTX_MODEL", str(TINY_CHECKPOINT))
    return tmp_path


def content(clip: Path) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Frames, sound and plan of a clip."""
    sound, recipe = read_audio(clip), read_recipe(clip)
    assert sound is not None and recipe is not None
    return torch.stack(list(read_frames(clip))), sound.waveform, recipe["plan"]


def assert_same_clips(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in (name for name in names if name.endswith(".mp4")):
        (frames, sound, plan), (frames_too, sound_too, plan_too) = content(one / name), content(other / name)
        assert torch.equal(frames, frames_too) and torch.equal(sound, sound_too) and plan == plan_too


def kill_once(monkeypatch: pytest.MonkeyPatch, nth: int) -> list[int]:
    """Kill the worker of the n-th clip when it gets it; the processes that were killed."""
    processes: dict[int, int] = {}
    given, killed, seen = [], [], Overview.seen

    def watch(self: Overview, worker: int, job: Any, far: str) -> None:
        seen(self, worker, job, far)
        if far.startswith("process"):
            processes[worker] = int(far.split()[1])
        elif job is not None and not far:
            given.append(job)
            if len(given) == nth:
                killed.append(processes[worker])
                os.kill(processes[worker], signal.SIGKILL)

    monkeypatch.setattr(Overview, "seen", watch)
    return killed


def test_a_batch_on_a_cluster_is_the_local_batch(
    cluster: None, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """The documented command, on two workers of which one is killed; one clip goes to a URL."""
    line = documented("batch .*--ray")
    monkeypatch.setattr(executor, "plan_workers", lambda workers: (2, {"num_cpus": 1}))
    drum = {"prompt": "a drum", "output": "clips/drum.mp4", "contact_sheet": "clips/drum.png", "seeds": "3"}
    lines = "\n".join(json.dumps({**CLIP, **one}) for one in ({"prompt": "a bell"}, drum))
    (here / "requests.jsonl").write_text(lines)
    assert run(line.removesuffix(" --ray").split()) == 0
    (here / "clips").rename(here / "local")
    (here / "requests.jsonl").write_text(lines.replace("clips/drum", f"file://{here}/clips/drum"))
    killed = kill_once(monkeypatch, 2)
    names = ("clips/0001-1.mp4", "clips/0001-2.mp4", f"file://{here}/clips/drum-3.mp4")
    for command, said in ((line, "wrote {}:"), (line.removesuffix(" --ray"), "{} is already there")):
        capfd.readouterr()
        assert run(command.split()) == 0
        shown = capfd.readouterr().err
        assert [shown.count(said.format(name)) for name in names] == [1, 1, 1]
    assert len(killed) == 1 and caplog.text.count("died and is replaced") == 1
    assert_same_clips(here / "local", here / "clips")


def write_table(folder: Path, count: int) -> None:
    """A table of clips, some of them silent, one with a reference, and one that is no clip; and a model."""
    (folder / "model.safetensors").symlink_to(TINY_CHECKPOINT / "ltx-2-tiny.safetensors")
    (folder / "gemma").symlink_to(TINY_CHECKPOINT / "gemma-3-tiny")
    sound = Audio(torch.sin(torch.arange(12000) * 0.05).expand(2, -1) * 0.3, 16000)
    rows: list[dict[str, str]] = []
    for index in range(count):
        frames = torch.full((17, 64, 96, 3), 20 + 3 * index, dtype=torch.uint8)
        write_video(folder / f"{index}.mp4", [frames], 24.0, sound if index % 2 else None)
        rows.append({"video": f"{index}.mp4", "caption": f"clip {index}"})
    rows[1]["reference_video"] = "0.mp4"
    (folder / "broken.mp4").write_bytes(b"junk")
    (folder / "table.json").write_text(json.dumps([*rows, {"video": "broken.mp4", "caption": ""}]))


def assert_same_records(one: Path, other: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files and files == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    for file in files:
        record, record_too = read_record(one / file), read_record(other / file)
        assert record.keys() == record_too.keys() and read_inputs(one / file) == read_inputs(other / file)
        for name, value in record.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(record_too[name])), f"{file}: {name}"


def kill_after(records: Path, driver: int) -> None:
    """Kill a worker that works when records begin to appear in a folder."""
    wait_for(lambda: any(records.glob("*.safetensors")))
    os.kill(wait_for(lambda: actors_of(driver, "ray::Actor.run"))[0], signal.SIGKILL)


def test_a_data_set_on_a_cluster_is_the_local_one(
    cluster: None, here: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The documented command, on two workers of which one is killed."""
    line = documented("dataset process .*--ray")
    monkeypatch.setattr(executor, "plan_workers", lambda workers: (2, {"num_cpus": 1}))
    write_table(here, 4)
    assert run(line.removesuffix(" --ray").split()) == 0
    made = (here / ".precomputed").rename(here / "local")
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_after, here / ".precomputed" / "conditions", os.getpid())
        assert run(line.split()) == 0
        killing.result()
    assert caplog.text.count("died and is replaced") == 1
    assert_same_records(made, here / ".precomputed")
    reports = ((folder / "report.txt").read_text() for folder in (made, here / ".precomputed"))
    told, told_too = ([line for line in text.splitlines() if " written, " not in line] for text in reports)
    assert told == [line.replace(f"{here}/", "") for line in told_too] and "1 captions are blank" in told


@pytest.mark.slow
def test_forty_clips_and_a_worker_killed(here: Path) -> None:
    """In processes of their own, as people start them; then stopped by Ctrl-C, then gone on with."""
    lines = [{**CLIP, "prompt": f"a bell, {index}", "seed": index} for index in range(40)]
    (here / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "-m", "ltx_pipelines", "batch", "clips.jsonl"]

    def clips() -> list[Path]:
        return sorted((here / "fleet").glob("*.mp4"))

    @contextmanager
    def started() -> Iterator[subprocess.Popen[str]]:
        line = [*command, "-o", "fleet", "--ray", "local", "2"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.terminate()

    with started() as stopped:
        wait_for(lambda: len(clips()) >= 3)
        workers = actors_of(stopped.pid)
        stopped.send_signal(signal.SIGINT)
        _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and said.endswith("ltx: stopped: nothing was left half-written\n")
    before = {path: path.stat().st_mtime_ns for path in clips()}
    assert set(before) == set((here / "fleet").iterdir()) and len(before) < 40
    assert len(workers) == 2
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))

    with started() as fleet:
        wait_for(lambda: len(clips()) >= len(before) + 5)
        os.kill(actors_of(fleet.pid)[0], signal.SIGKILL)
        printed, said = fleet.communicate(timeout=300)
    assert fleet.returncode == 0 and not printed
    assert said.count("is already there") == len(before) and said.count("died and is replaced") == 1
    assert said.count("wrote fleet/") == 40 - len(before)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in clips()}.items()
    subprocess.run([*command, "-o", "local", "-q"], check=True)
    assert_same_clips(here / "local", here / "fleet")


@pytest.mark.slow
def test_forty_rows_and_a_worker_killed(here: Path) -> None:
    write_table(here, 40)
    line = documented("dataset process .*--ray").removesuffix(" --ray").split()
    command = [sys.executable, "-m", "ltx_pipelines", *line]
    fleet = [*command, "--output-dir", "fleet", "--ray", "--ray-address", "local", "--ray-workers", "2"]
    with subprocess.Popen(fleet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            kill_after(here / "fleet" / "conditions", process.pid)
            _, said = process.communicate(timeout=300)
        finally:
            process.terminate()
    assert process.returncode == 0 and said.count("died and is replaced") == 1
    subprocess.run([*command, "--output-dir", "local"], check=True, stdout=subprocess.DEVNULL)
    assert_same_records(here / "local", here / "fleet")


@pytest.mark.slow
def test_the_studio_has_clips_made_on_a_cluster(cluster: None, tmp_path: Path) -> None:
    """A worker is killed at one, another is cancelled, and the next one needs a file of the server."""
    import ray

    small = {"num_frames": 9, "height": 64, "width": 64, "pipeline": "one-stage"}
    store = Store(tmp_path)
    with served(tmp_path, "--ray", ray.get_runtime_context().gcs_address, "1") as (address, _):
        killed, long = (
            ask(address, prompt="a bell", **small, num_inference_steps=steps)["id"] for steps in (400, 1000)
        )

        def ended(job_id: str) -> Job | None:
            return found if (found := store.get(job_id)) and found.ended else None

        wait_for(lambda: (found := store.get(killed)) and found.progress > 0)
        os.kill(actors_of(os.getpid())[0], signal.SIGKILL)
        done = wait_for(lambda: ended(killed))
        assert (done.status, done.attempts, done.facts["frames"]) == ("completed", 1, 9)
        files = {path.name: path for path in (tmp_path / "jobs" / killed).iterdir()}
        assert files.keys() == {"clip.mp4", "thumbnail.webp", "spritesheet.jpg"}
        assert content(files["clip.mp4"])[0].shape == (9, 64, 64, 3)
        sounding = ask(address, prompt="a bell", pipeline="v2a-one-stage", video_path=killed, num_inference_steps=1)
        wait_for(lambda: (found := store.get(long)) and found.progress > 0)
        store.cancel(long)
        assert wait_for(lambda: ended(long)).status == "cancelled"
        done = wait_for(lambda: ended(sounding["id"]))
        assert done.status == "completed", done
