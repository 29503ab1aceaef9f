"""The progress of a pull on standard error: a bar in a terminal, plain lines in a log."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tokenworks.cli.terminal import size


class PullBar:
    """`models.progress.Progress`, as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._current: TaskID | None = None

    def __enter__(self) -> "PullBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def begin(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        if not self._console.is_terminal:
            whole = size(total_bytes) if total_bytes is not None else "size unknown"
            rest = f", {size(done_bytes)} of it here already" if done_bytes else ""
            print(f"Downloading {what} ({whole}{rest})", file=sys.stderr, flush=True)
            return
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total_bytes)
        self._current = self._tasks[what]
        self._bar.update(self._current, completed=done_bytes, total=total_bytes)

    def advance(self, count_bytes: int) -> None:
        if self._current is not None:
            self._bar.advance(self._current, count_bytes)
