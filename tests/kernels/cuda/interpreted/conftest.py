"""Every test here runs kernels under the interpreter with its bfloat16 and FP8 put right."""

from collections.abc import Iterator

import pytest

pytest.importorskip("triton")

import interpreter_shim
import interpreter_speed


@pytest.fixture(autouse=True, scope="session")
def shim() -> Iterator[None]:
    with interpreter_shim.installed(), interpreter_speed.installed():
        yield
