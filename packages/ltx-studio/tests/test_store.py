"""The queue: every transition, and what is left when a process dies."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ltx_studio.store import MAX_ATTEMPTS, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_job_goes_through_the_queue(store: Store) -> None:
    first, second = store.add({"prompt": "a"}, "tiny"), store.add({"prompt": "b"}, "tiny")
    assert store.queued_before(second) == 1
    claimed = store.claim("w")
    assert claimed is not None and claimed.id == first.id and claimed.status == "in_progress"
    store.advance(first.id, "denoise", 0.5, {"seed": 3})
    assert store.end(first.id, "completed", facts={"file": "x.mp4"})
    assert not store.end(first.id, "failed"), "a job ends once"
    done = store.get(first.id)
    assert done is not None and done.facts == {"seed": 3, "file": "x.mp4"} and done.progress == 1
    assert [job.id for job in store.list()] == [second.id, first.id]
    assert [job.id for job in store.list(after=second.id)] == [first.id]


def test_cancelling(store: Store) -> None:
    waiting, running = store.add({}, "tiny"), store.add({}, "tiny")
    store.cancel(waiting.id)
    assert store.get(waiting.id).status == "cancelled"
    assert store.claim("w").id == running.id
    assert store.cancel(running.id).status == "in_progress", "only its worker ends a running job"
    assert store.is_cancelled(running.id)
    assert not store.delete(running.id)
    assert store.abandon("w", "gone")[0].status == "cancelled"
    assert store.delete(running.id) and store.get(running.id) is None


def test_a_dead_worker_loses_nothing_until_it_dies_twice(store: Store) -> None:
    job = store.add({}, "tiny")
    for _ in range(MAX_ATTEMPTS - 1):
        store.claim("w")
        assert store.abandon("other", "") == ()
        assert store.abandon("w", "killed")[0].status == "queued"
    store.claim("w")
    (failed,) = store.abandon("w", "out of memory")
    assert failed.status == "failed" and "out of memory" in failed.error
    assert store.get(job.id).ended


def test_many_workers_never_claim_one_job_twice(store: Store) -> None:
    for _ in range(60):
        store.add({}, "tiny")
    claimed: list[str] = []

    def work(name: str) -> None:
        while (job := store.claim(name)) is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 60
