"""The progress of a pull on standard error: a bar in a terminal, plain lines in a log."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from tokenworks.cli.terminal import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class PullBar:
    """`models.progress.Progress`, as a context manager. Costs nothing until something is pulled."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._current: TaskID | None = None

    def __enter__(self) -> "PullBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        if not sys.stderr.isatty():
            whole = size(total_bytes) if total_bytes is not None else "size unknown"
            rest = f", {size(done_bytes)} of it here already" if done_bytes else ""
            self.say(f"Downloading {what} ({whole}{rest})")
            return
        self._bar = self._bar or _started_bar()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total_bytes)
        self._current = self._tasks[what]
        self._bar.update(self._current, completed=done_bytes, total=total_bytes)

    def advance(self, count_bytes: int) -> None:
        if self._bar is not None and self._current is not None:
            self._bar.advance(self._current, count_bytes)


def _started_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.start()
    return bar
