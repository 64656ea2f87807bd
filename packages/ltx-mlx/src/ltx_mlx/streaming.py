"""Blocks that are read from their mapped files when their turn comes, so that a few are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, overload

import mlx.nn as nn

Block = TypeVar("Block", bound=nn.Module)


class StreamedBlocks(Sequence[Block], Generic[Block]):
    """Blocks of a network in their order. While one computes, a thread reads the next."""

    def __init__(self, count: int, read: Callable[[int], Block]) -> None:
        self._count, self._read = count, read
        self._coming: tuple[int, Future[Block]] | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlx-blocks")

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...

    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        coming, self._coming = self._coming, None
        block = coming[1].result() if coming is not None and coming[0] == index else self._read(index)
        following = (index + 1) % self._count
        self._coming = following, self._reader.submit(self._read, following)
        return block

    def forget(self) -> None:
        """Read the next block anew: what it is made of has changed."""
        self._coming = None

    def close(self) -> None:
        """End the reader."""
        self.forget()
        self._reader.shutdown(wait=True, cancel_futures=True)
