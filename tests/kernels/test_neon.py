"""NEON's kernels, cross-compiled and run by an emulator of Arm's processors, against the scalar ones."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tokenworks.kernels import cpu

NATIVE = Path(__file__).parent / "native"
SOURCE = Path(cpu.__file__).parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


def test_products_are_the_scalar_kernels_on_an_emulated_processor(tmp_path: Path) -> None:
    program = tmp_path / "check"
    sources = [SOURCE / "linear" / f"{name}.cpp" for name in ("neon", "scalar", "product", "pack")]
    flags = ["-static", "-std=c++20", "-O2", "-ffp-contract=off", "-Wno-psabi", "-march=armv8.2-a+dotprod"]
    command = [COMPILER, *flags, "-DNEON", f"-I{SOURCE}", "-pthread", NATIVE / "check_linear.cpp", *sources,
               SOURCE / "ahead.cpp", SOURCE / "team.cpp", "-o", program]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr[-4000:]
    done = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"q4", "nvfp4", "q8", "f16", "f32"} <= set(done.stdout.split())


def test_every_file_that_arm_gets_compiles_for_it(tmp_path: Path) -> None:
    """Also dispatch.cpp, which there finds dot products by asking the system."""
    for name in ("scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon"):
        (tmp_path / f"fill_{name}.inc").write_text("linear_scalar(table);\n" if name == "scalar" else "")
    files = [
        *SOURCE.glob("*/scalar.cpp"),
        *SOURCE.glob("executor/*.cpp"),
        *(SOURCE / f"{name}.cpp" for name in ("ahead", "dispatch", "memory", "team")),
    ]
    command = [COMPILER, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-psabi",
               "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized", f"-I{tmp_path}", f"-I{SOURCE}", *files]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
