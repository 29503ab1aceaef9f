"""Experts of a model that does not fit into memory: the same bits as in memory, wherever they lie; what is kept gives
way to others' memory; what was read is counted."""

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from kernel_support import limits, program_of, run, step, tensors

from tokenworks.kernels.cpu import keeper, packed_file, weights
from tokenworks.kernels.cpu.backend import CpuBackend, CpuExecutable
from tokenworks.kernels.program import Expert, Program, ProgramBuilder, Value
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.files.packed_store import place_of

WIDTH, INNER, EXPERTS, TOP_K, ROWS = 64, 128, 6, 2, 40
PAGE = 4096
EACH = 3 * -(-INNER * WIDTH * 4 // PAGE) * PAGE
MARGIN = 10 * EACH

Model: TypeAlias = tuple[Program, dict[str, Tensor]]


class Memory:
    """What the system says that is to be had, besides what experts take."""

    def __init__(self) -> None:
        self.free_bytes = 0
        self.executable: CpuExecutable | None = None

    def available_bytes(self) -> int:
        return self.free_bytes - (self.executable.kept_expert_bytes if self.executable else 0)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(weights, "memory_available_bytes", lambda: 1000)
    monkeypatch.setattr(keeper, "memory_available_bytes", memory.available_bytes)
    monkeypatch.setattr(keeper, "LEAST_MARGIN_BYTES", MARGIN)
    monkeypatch.setattr(keeper, "MARGIN_SHARE", 0)
    monkeypatch.setattr(keeper, "LOOK_TOKENS", 1)
    return memory


@pytest.fixture(scope="module")
def model() -> Model:
    rng = np.random.default_rng(1)
    arrays = {"x": rng.standard_normal((ROWS, WIDTH)), "router": rng.standard_normal((EXPERTS, WIDTH))}
    for e in range(EXPERTS):
        arrays |= {f"{e}.{m}": rng.standard_normal((INNER, WIDTH)) / 8 for m in ("gate", "up")}
        arrays[f"{e}.down"] = rng.standard_normal((WIDTH, INNER)) / 8

    def layer(b: ProgramBuilder, x: Value) -> Value:
        experts = [Expert(e, f"{e}.gate", f"{e}.up", f"{e}.down") for e in range(EXPERTS)]
        routes = b.route(b.linear(x, ["router"], EXPERTS), TOP_K, normalise=True)
        return b.experts(x, routes, experts, INNER, "silu", count=EXPERTS)

    return program_of(WIDTH, layer), tensors(arrays)


OTHERS_BYTES = (48 + 16) * WIDTH * 4
"""The model's matrices that are no experts: 40 and 6 rows, in panels of 16."""


def start(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CpuExecutable:
    monkeypatch.setenv("TOKENWORKS_HOME", str(folder / "home"))
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(1000))
    os.utime(folder / "model.gguf", (1, 1))
    return CpuBackend().compile(*model, limits(), place_of(folder / "model.gguf", 1000))


def forget(file: Path) -> None:
    """The system's cache of it, where nobody maps it: then it is read from the disk."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_experts_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Memory, model: Model) -> None:
    batch = step([(range(ROWS), 0)])
    whole = CpuBackend().compile(*model, limits())
    expected = run(whole, batch)
    assert whole.expert_reads() == (0, 0)
    assert whole.kept_expert_bytes == 0

    memory.free_bytes = 1 << 30
    for _ in ("packed and written", "the file of the start before"):
        on_disk = start(model, tmp_path, monkeypatch)
        np.testing.assert_array_equal(run(on_disk, batch), expected)
        used = sum(count > 0 for count in on_disk.expert_uses()[0])
        needed, found = on_disk.expert_reads()
        assert needed == used * EACH, "some of them may be in the file's cache"
        np.testing.assert_array_equal(run(on_disk, batch), expected)
        assert on_disk.expert_reads() == (2 * needed, found + needed)
        assert on_disk.kept_expert_bytes == used * EACH


@pytest.mark.parametrize("slots", [0, 1, 3, 5])
def test_experts_that_take_each_others_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Memory, model: Model, slots: int
) -> None:
    whole = CpuBackend().compile(*model, limits())
    steps = [step([(range(row, row + 1 + row % 3 * 4), 0)]) for row in range(30)]
    memory.free_bytes = OTHERS_BYTES + MARGIN + slots * EACH
    memory.executable = on_disk = start(model, tmp_path, monkeypatch)
    (file,) = (tmp_path / "home").rglob("*.packed")
    for number, batch in enumerate(steps * 2):
        if number % 2:
            forget(file)
        np.testing.assert_array_equal(run(on_disk, batch), run(whole, batch))
        assert on_disk.kept_expert_bytes <= slots * EACH
    assert on_disk.kept_expert_bytes == slots * EACH
    needed, found = on_disk.expert_reads()
    assert (0 if slots else -1) < found <= needed


def test_memory_that_others_want(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Memory, model: Model) -> None:
    batch = step([(range(ROWS), 0)])
    expected = run(CpuBackend().compile(*model, limits()), batch)
    memory.free_bytes = OTHERS_BYTES + 100 * MARGIN
    memory.executable = on_disk = start(model, tmp_path, monkeypatch)
    kept = []
    for others in (0, 0, 99.4, 99.4, 99.9, 99.9, 0, 0):
        memory.free_bytes = int(OTHERS_BYTES + (100 - others) * MARGIN)
        np.testing.assert_array_equal(run(on_disk, batch), expected)
        kept.append(on_disk.kept_expert_bytes // EACH)
    most = kept[0]
    assert most > 4
    assert kept == [most, most, 0, 0, 0, 0, 0, most]


def test_a_file_that_is_replaced_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Memory, model: Model
) -> None:
    """The experts come from the mapping, which still has the old file."""
    batch = step([(range(ROWS), 0)])
    expected = run(CpuBackend().compile(*model, limits()), batch)
    memory.free_bytes = 1 << 30
    start(model, tmp_path, monkeypatch)
    opened = packed_file.open_packed

    def open_and_replace(path: Path, sources: tuple[packed_file.Source, ...]) -> packed_file.PackedFile | None:
        found = opened(path, sources)
        path.rename(path.with_suffix(".old"))
        path.write_bytes(bytes(path.with_suffix(".old").stat().st_size))
        return found

    monkeypatch.setattr(weights, "open_packed", open_and_replace)
    for _ in range(2):
        on_disk = start(model, tmp_path, monkeypatch)
        np.testing.assert_array_equal(run(on_disk, batch), expected)
