"""Ranks as threads of one process, which meet at every collective."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")


class Meeting:
    """Where the threads of some ranks bring their arrays."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.brought: list[Any] = [None] * ranks

    def all(self, rank: int, array: Any) -> list[Any]:
        self.brought[rank] = array.copy()
        self.barrier.wait()
        arrays = list(self.brought)
        self.barrier.wait()
        return arrays


@dataclass
class ThreadGroup:
    meeting: Meeting
    rank: int
    ranks: int

    def all_reduce(self, x: Any) -> None:
        x[:] = np.sum(self.meeting.all(self.rank, x), axis=0)

    def all_gather(self, x: Any, out: Any, widths: tuple[int, ...]) -> None:
        arrays = self.meeting.all(self.rank, x)
        assert tuple(array.shape[1] for array in arrays) == widths
        out[:] = np.concatenate(arrays, axis=1)

    def broadcast(self, x: Any) -> None:
        x[:] = self.meeting.all(self.rank, x)[0]


def on_ranks(ranks: int, run: Callable[[ThreadGroup], Result]) -> list[Result]:
    """What each rank's thread returns."""
    meeting = Meeting(ranks)

    def of_rank(rank: int) -> Result:
        try:
            return run(ThreadGroup(meeting, rank, ranks))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return [done.result() for done in [pool.submit(of_rank, rank) for rank in range(ranks)]]
