"""Runs the folder interpreted/ in a process whose Triton interprets. No kernel may be left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from all_kernels import LAUNCHED, entry_kernels

PLAIN = [word for plugin in ("cacheprovider", "schemathesis", "hypothesispytest") for word in ("-p", f"no:{plugin}")]
"""Without plugins that cost a second to load."""


def test_kernels_under_the_interpreter() -> None:
    folder = Path(__file__).parent / "interpreted"
    # One thread: the interpreter's small numpy operations gain nothing by more.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", *PLAIN, "--tb=short", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    (names,) = (line.removeprefix(LAUNCHED).split() for line in done.stdout.splitlines() if line.startswith(LAUNCHED))
    assert entry_kernels() <= set(names)
