"""Experts of a model that does not fit into memory: the same bits from the mapped file; what was read is counted."""

from pathlib import Path

import numpy as np
import pytest
from kernel_support import limits, program_of, run, step, tensors

from tokenworks.kernels.cpu import weights
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Expert, ProgramBuilder, Value
from tokenworks.models.files.packed_store import place_of

WIDTH, INNER, EXPERTS, TOP_K, ROWS = 64, 128, 6, 2, 40
PAGE = 4096


def layer(b: ProgramBuilder, x: Value) -> Value:
    experts = [Expert(e, f"{e}.gate", f"{e}.up", f"{e}.down") for e in range(EXPERTS)]
    routes = b.route(b.linear(x, ["router"], EXPERTS), TOP_K, normalise=True)
    return b.experts(x, routes, experts, INNER, "silu", count=EXPERTS)


def test_the_same_bits_and_what_was_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(1000))
    rng = np.random.default_rng(1)
    arrays = {"x": rng.standard_normal((ROWS, WIDTH)), "router": rng.standard_normal((EXPERTS, WIDTH))}
    for e in range(EXPERTS):
        arrays |= {f"{e}.{m}": rng.standard_normal((INNER, WIDTH)) / 8 for m in ("gate", "up")}
        arrays[f"{e}.down"] = rng.standard_normal((WIDTH, INNER)) / 8
    program, found = program_of(WIDTH, layer), tensors(arrays)
    batch = step([(range(ROWS), 0)])
    whole = CpuBackend().compile(program, found, limits())
    expected = run(whole, batch)
    assert whole.expert_reads() == (0, 0)

    monkeypatch.setattr(weights, "memory_available_bytes", lambda: 1000)
    place = place_of(tmp_path / "model.gguf", 1000)
    assert place is not None
    on_disk = CpuBackend().compile(program, found, limits(), place)
    np.testing.assert_array_equal(run(on_disk, batch), expected)
    used = sum(count > 0 for count in on_disk.expert_uses()[0])
    each = 3 * -(-INNER * WIDTH * 4 // PAGE) * PAGE
    needed, _ = on_disk.expert_reads()
    assert needed == used * each

    # Another start maps the file; what one step has read is in memory for the next.
    mapped = CpuBackend().compile(program, found, limits(), place)
    np.testing.assert_array_equal(run(mapped, batch), expected)
    first, _ = mapped.expert_reads()
    np.testing.assert_array_equal(run(mapped, batch), expected)
    both, resident = mapped.expert_reads()
    assert both == 2 * first
    assert resident >= first
