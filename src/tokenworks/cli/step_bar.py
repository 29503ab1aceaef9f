"""The progress of a long computation on standard error: a bar in a terminal, plain lines in a log."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class StepBar:
    """One bar for each `title`, as a context manager."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "StepBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None:
                for task in self._tasks.values():
                    self._bar.update(task, completed=self._bar.tasks[task].total, doing="done")
            self._bar.stop()

    def say(self, text: str) -> None:
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, title: str, done: int, total: int, what: str) -> None:
        """`done` of `total` steps are finished; `what` is the next."""
        if not sys.stderr.isatty():
            self.say(f"{title}, {done + 1} of {total}: {what}")
            return
        self._bar = self._bar or _started_bar()
        if title not in self._tasks:
            self._tasks[title] = self._bar.add_task(title, total=total, doing=what)
        self._bar.update(self._tasks[title], completed=done, doing=what)


def _started_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}"),
        console=Console(stderr=True),
    )
    bar.start()
    return bar
