"""Packed weights in a file: the same bits as packed ones, and whatever is wrong with the file, the model starts."""

import hashlib
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from kernel_support import limits, run, step, tensors

from tokenworks.kernels.cpu import _cpu, packed_file, weights
from tokenworks.kernels.cpu.backend import CpuBackend, CpuExecutable
from tokenworks.kernels.formats import FORMATS, tensor_bytes
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.files.packed_store import PackedPlace, place_of

WIDTH = 256
FORMAT_NAMES = sorted(FORMATS.keys() - {"F8_64"})  # which is a GPU's


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(weights, "KEPT_BYTES", 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(1000))
    return tmp_path / "model.gguf"


def place_at(source: Path) -> PackedPlace:
    place = place_of(source, 1000)
    assert place is not None
    return place


def pattern(form: str, rows: int = 40) -> Tensor:
    """The same bytes on every machine; as scales they are positive and below one."""
    data = (np.arange(tensor_bytes(form, (rows, WIDTH))) * 73 % 59).astype(np.uint8)
    scales = np.arange(1, rows + 1, dtype=np.float32) / 64 if form in ("I8", "NVFP4", "F8_E4M3") else None
    return Tensor(form, form, (rows, WIDTH), data, scales)


def every_format() -> tuple[Program, dict[str, Tensor]]:
    b = ProgramBuilder()
    x = b.rmsnorm(b.embed("x", WIDTH), "norm", 1e-5)
    made = {form: pattern(form) for form in FORMAT_NAMES}
    table = np.random.default_rng(3).standard_normal((8, WIDTH)).astype(np.float32)
    given = tensors({"x": table, "norm": np.ones(WIDTH)}) | made
    return b.finish(b.linear(x, FORMAT_NAMES, 40 * len(FORMAT_NAMES))), given


def start(place: PackedPlace | None, changed: dict[str, Tensor] | None = None) -> CpuExecutable:
    program, given = every_format()
    return CpuBackend().compile(program, given | (changed or {}), limits(), place)


def answer(executable: CpuExecutable) -> np.ndarray:
    return run(executable, step([([1, 5, 7], 0)]))


@pytest.fixture
def kept(source: Path) -> PackedPlace:
    place = place_at(source)
    first = start(place)
    assert not first.from_packed_file
    first.keep_packed()
    assert place.path.stat().st_size > 0
    return place


def test_a_second_start_maps_and_has_the_same_bits(kept: PackedPlace) -> None:
    again = start(kept)
    assert again.from_packed_file and again.weight_bytes == start(None).weight_bytes
    np.testing.assert_array_equal(answer(again), answer(start(None)))


def test_it_does_not_read_the_matrices_again(kept: PackedPlace) -> None:
    zeros = {form: Tensor(form, "F32", (40, WIDTH), np.zeros(40 * WIDTH * 4, np.uint8)) for form in FORMAT_NAMES}
    np.testing.assert_array_equal(answer(start(kept, zeros)), answer(start(None)))


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_another_instruction_set_maps_the_same_file(kept: PackedPlace, isa: str) -> None:
    """All read one layout; a set with one of its own would have a name of its own in packed_file.LAYOUT."""
    code = "from tokenworks.kernels.cpu.backend import CpuBackend; CpuBackend().isa"
    environment = os.environ | {"TOKENWORKS_FORCE_ISA": isa}
    if subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True).returncode:
        pytest.skip(f"this machine lacks {isa}")
    script = f"""
        import sys; sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from test_packed_file import *
        place = place_at(Path({kept.sources[0].path!r}))
        mapped, packed = start(place), start(None)
        assert CpuBackend().isa == {isa!r} and mapped.from_packed_file and not packed.from_packed_file
        np.testing.assert_array_equal(answer(mapped), answer(packed))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(at: float, *, hide: bool) -> Callable[[Path], None]:
    """Another byte at a share of the file; `hide`: with the old time, as a bad disk does it."""

    def flip_there(path: Path) -> None:
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[int(at * len(data))] ^= 1
        path.write_bytes(data)
        if hide:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return flip_there


@pytest.mark.parametrize(
    "spoil",
    [cut, empty, flip(0.3, hide=False), flip(0.3, hide=True), flip(0.9999, hide=True)],
    ids=["cut", "empty", "written to", "a bit of a matrix", "a bit of the index"],
)
def test_a_spoilt_file_is_packed_anew(kept: PackedPlace, spoil: Callable[[Path], None]) -> None:
    spoil(kept.path)
    again = start(kept)
    assert not again.from_packed_file
    np.testing.assert_array_equal(answer(again), answer(start(None)))
    again.keep_packed()
    assert start(kept).from_packed_file


def test_a_changed_source_is_packed_anew_in_the_same_place(kept: PackedPlace, source: Path) -> None:
    with source.open("r+b") as file:
        file.write(b"GGUG")
    changed = place_at(source)
    assert changed.path == kept.path
    again = start(changed)
    assert not again.from_packed_file
    again.keep_packed()
    assert start(changed).from_packed_file and not start(kept).from_packed_file


def test_another_layout_is_packed_anew(kept: PackedPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "LAYOUT", "tiles8.1")
    assert not start(kept).from_packed_file


def test_another_program_over_the_same_weights_is_packed_anew(kept: PackedPlace) -> None:
    b = ProgramBuilder()
    program = b.finish(b.linear(b.embed("x", WIDTH), ["Q8_0"], 40))
    assert not CpuBackend().compile(program, every_format()[1], limits(), kept).from_packed_file


@contextmanager
def limit(what: int, most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def test_a_full_disk_leaves_nothing_behind(source: Path) -> None:
    place = place_at(source)
    executable = start(place)
    with limit(resource.RLIMIT_FSIZE, 100_000), pytest.raises(OSError, match="File too large"):
        executable.keep_packed()
    assert list(place.path.parent.iterdir()) == []
    np.testing.assert_array_equal(answer(executable), answer(start(None)))


def test_one_that_does_not_fit_into_memory_is_streamed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "memory_available_bytes", lambda: 1000)
    monkeypatch.setattr(weights, "PACK_BATCH_BYTES", 1)
    place = place_at(source)
    executable = start(place)
    assert place.path.exists()
    np.testing.assert_array_equal(answer(executable), answer(start(None)))
    assert start(place).from_packed_file


def test_without_room_for_the_stream_it_is_packed_into_memory(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "memory_available_bytes", lambda: 1000)
    place = place_at(source)
    with limit(resource.RLIMIT_FSIZE, 100_000):
        executable = start(place)
    assert not place.path.exists()
    np.testing.assert_array_equal(answer(executable), answer(start(None)))


def test_streaming_holds_a_batch_in_memory_not_the_model(source: Path) -> None:
    """200 MB of weights, packed where the process may have 120 MB more: packing them all at once cannot."""
    script = f"""
        import resource, sys; sys.path[:0] = {sys.path!r}
        from test_packed_file import *
        rows, count = 16384, 12
        data = np.zeros(tensor_bytes("F32", (rows, WIDTH)), np.uint8)
        given = {{f"w{{i}}": Tensor(f"w{{i}}", "F32", (rows, WIDTH), data) for i in range(count)}}
        b = ProgramBuilder()
        x = b.embed("w0", WIDTH)
        program = b.finish(b.linear(x, list(given), rows * count))
        place = place_at(Path({str(source)!r})) if sys.argv[1] == "stream" else None
        weights.memory_available_bytes = lambda: 1000
        sizes = limits(step_tokens=1, logit_rows=1, sequences=1, blocks=1, threads=1)
        taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (taken + (120 << 20),) * 2)
        CpuBackend().compile(program, given, sizes, place)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    assert subprocess.run([*command, "stream"], check=False).returncode == 0
    refused = subprocess.run([*command, "pack"], check=False, capture_output=True, text=True)
    assert "MemoryError" in refused.stderr or "bad_alloc" in refused.stderr


def test_the_layouts_name_stands_for_its_bytes() -> None:
    """When this fails, packing makes other bytes than before: change packed_file.LAYOUT together with the sum."""
    executor = _cpu.Executor(1)
    made = [pattern(form) for form in FORMAT_NAMES]
    packed = executor.pack([(t.name, t.format, *t.shape, t.data, t.row_scales) for t in made])
    digest = hashlib.sha256(b"".join(repr(facts).encode() + data.tobytes() for facts, data in packed)).hexdigest()
    assert (packed_file.LAYOUT, digest[:16]) == ("panels16.2", "f83a2ba7a48d857a")


def test_a_checksum_sees_any_byte_and_any_exchange() -> None:
    data = np.random.default_rng(0).integers(0, 256, 1001, np.uint8)
    sums = {_cpu.checksum(data), _cpu.checksum(data[:-1])}
    for at in range(0, 1001, 77):
        other = data.copy()
        other[at] ^= 128
        sums.add(_cpu.checksum(other))
    exchanged = data.copy()
    exchanged[:64], exchanged[64:128] = data[64:128], data[:64]
    sums.add(_cpu.checksum(exchanged))
    assert len(sums) == 3 + len(range(0, 1001, 77))
