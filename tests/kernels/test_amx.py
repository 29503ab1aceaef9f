"""AMX's kernels, whose instructions few machines have: run on tiles emulated in software, against AVX-512's kernels."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tokenworks.kernels import cpu
from tokenworks.telemetry.machine import machine

NATIVE = Path(__file__).parent / "native"
SOURCE = Path(cpu.__file__).parent
AVX512 = ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni",
          "-mavx512bf16"]  # fmt: skip

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels of another processor"),
    pytest.mark.skipif(not shutil.which("g++"), reason="no g++"),
]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """native/check_linear.cpp with the kernels' own sources, tiles emulated."""
    if not {"avx512_vnni", "avx512_bf16"} <= set(machine().instruction_sets):
        pytest.skip("what AMX's kernels are compared with needs AVX-512 with VNNI and BF16")
    program = tmp_path_factory.mktemp("amx") / "check"
    sources = [SOURCE / "linear" / f"{name}.cpp" for name in ("amx", "avx512", "avx512_bf16", "product", "pack")]
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wno-psabi", *AVX512, "-DAMX", f"-I{SOURCE}", "-pthread"]
    command = ["g++", *flags, "-include", NATIVE / "emulate_amx.h", NATIVE / "check_linear.cpp", *sources,
               SOURCE / "ahead.cpp", SOURCE / "team.cpp", "-o", program]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return program


def output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_products_on_tiles_have_the_bits_of_avx512(check: Path) -> None:
    products = dict(line.split() for line in output(check).splitlines())
    floats = {"f8", "f16", "f32"}
    assert {name for name, count in products.items() if int(count) == 0} == floats
    assert len(products) > len(floats)


def test_the_self_check_notices_tiles_that_compute_something_else(check: Path) -> None:
    assert output(check, "right") == "agrees\n"
    assert output(check, "wrong") == "disagrees\n"


def test_without_the_emulation_the_same_source_is_tile_instructions() -> None:
    flags = ["-std=c++20", "-O2", *AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16", f"-I{SOURCE}", "-Wno-psabi"]
    assembly = output("g++", *flags, "-S", "-o", "-", SOURCE / "linear" / "amx.cpp")
    for instruction in ("ldtilecfg", "tileloadd", "tdpbssd", "tdpbf16ps", "tilestored", "tilerelease"):
        assert f"\t{instruction}" in assembly
