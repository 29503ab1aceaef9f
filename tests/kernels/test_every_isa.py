"""The tests of this folder again, on each instruction set that this machine's best one hides."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tokenworks.kernels.cpu.backend import CpuBackend

SETS = (
    ["scalar", "neon"]
    if platform.machine() in ("aarch64", "arm64")
    else ["scalar", "avx2", "avx512", "avx512_bf16", "amx"]
)
BEST = SETS.index(CpuBackend().isa)
HERE = Path(__file__).parent


@pytest.mark.parametrize("isa", SETS[:BEST])
def test_forced(isa: str) -> None:
    files = [
        str(path) for path in HERE.glob("test_*.py") if "kernels.cpu" in path.read_text() and path != Path(__file__)
    ]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, env=os.environ | {"TOKENWORKS_FORCE_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


def chosen(forced: str) -> subprocess.CompletedProcess[str]:
    code = "from tokenworks.kernels.cpu.backend import CpuBackend; print(CpuBackend().isa)"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TOKENWORKS_FORCE_ISA": forced}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_forced_set_is_the_one_that_runs() -> None:
    for isa in SETS[: BEST + 1]:
        assert chosen(isa).stdout == f"{isa}\n"


def test_an_unknown_set_and_one_that_the_machine_lacks_are_refused() -> None:
    assert "no such set; there are scalar, avx2, avx512, avx512_bf16, amx, neon" in chosen("mmx").stderr
    for isa in {"avx2", "avx512", "avx512_bf16", "amx", "neon"} - set(SETS[: BEST + 1]):
        refused = chosen(isa)
        assert refused.stdout == ""
        assert f"TOKENWORKS_FORCE_ISA={isa}: " in refused.stderr
        assert f"its best set is {SETS[BEST]}" in refused.stderr
