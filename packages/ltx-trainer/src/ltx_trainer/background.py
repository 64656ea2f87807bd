"""Doing the next pieces of work in threads while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int | None = None
) -> Iterator[Result]:
    """``function`` of each item, in order, computed by ``workers`` threads up to ``ahead`` results early.

    ``ahead`` bounds the results kept in memory; by default two per worker. With 0 workers nothing is done early. An
    error of ``function`` is raised where its result would be given.
    """
    if workers <= 0:
        yield from map(function, items)
        return
    remaining = iter(items)
    executor = ThreadPoolExecutor(workers)
    try:
        waiting: deque[Future[Result]] = deque()
        waiting.extend(executor.submit(function, item) for item in islice(remaining, ahead or 2 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(executor.submit(function, item) for item in islice(remaining, 1))
            yield result
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
