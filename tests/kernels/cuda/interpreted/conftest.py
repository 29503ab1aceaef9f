"""Every test here runs kernels under the interpreter with its bfloat16 and FP8 put right."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

import right_interpreter
from all_kernels import LAUNCHED, name_of
from triton.runtime.interpreter import InterpretedFunction

from tokenworks.kernels.cuda import graphs

launched: set[str] = set()


@pytest.fixture(autouse=True, scope="session")
def shim() -> Iterator[None]:
    run = InterpretedFunction.run

    def noted(self: Any, *args: Any, **options: Any) -> None:
        launched.add(name_of(self))
        run(self, *args, **options)

    with right_interpreter.install(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "run", noted)
        yield


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Something for each capture. A replay is the launches of the step that was captured, bound as they were."""
    found: list[object] = []

    def capture(launch_all: Callable[[], object], pool: object) -> SimpleNamespace:
        found.append(pool)
        return SimpleNamespace(replay=launch_all)

    monkeypatch.setattr(graphs, "capture", capture)
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """For test_interpreted.py, which knows all kernels."""
    terminalreporter.write_line(f"{LAUNCHED} {' '.join(sorted(launched))}")
