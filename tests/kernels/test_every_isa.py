"""The tests of this folder again, on each instruction set that this machine's best one hides."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenworks.kernels.cpu.backend import CpuBackend

SETS = ["scalar", "avx2", "avx512", "amx"]
HERE = Path(__file__).parent


@pytest.mark.parametrize("isa", SETS[: SETS.index(CpuBackend().isa)])
def test_forced(isa: str) -> None:
    files = [
        str(path) for path in HERE.glob("test_*.py") if "kernels.cpu" in path.read_text() and path != Path(__file__)
    ]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, env=os.environ | {"TOKENWORKS_FORCE_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_forced_set_is_the_one_that_runs_and_an_unknown_one_is_refused() -> None:
    code = "from tokenworks.kernels.cpu.backend import CpuBackend; print(CpuBackend().isa)"
    for isa, want in (("scalar", "scalar\n"), ("mmx", "")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"TOKENWORKS_FORCE_ISA": isa}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == want
        assert ("no such set" in done.stderr) == (want == "")
