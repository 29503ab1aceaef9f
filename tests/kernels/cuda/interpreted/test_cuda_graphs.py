"""Decoding steps by graph, on CPU tensors: a capture is a replay of the first step's launches, bound as they were, so
that whatever was not read from the device's memory anew would show."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenworks.kernels.backend import CacheType, Executable, Limits, StepBatch
from tokenworks.kernels.cuda import graphs, inputs
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.graphs import PADDED_ROWS, GraphMemory, Graphs
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor

LIMITS = Limits(16, 5, 5, 24, 4, "float32", 1)


def model() -> tuple[Program, dict[str, Tensor]]:
    """A layer of attention whose result tells tokens, positions and everything kept apart."""
    rng, b = np.random.default_rng(0), ProgramBuilder()
    arrays = {
        "embed": rng.standard_normal((50, 32)),
        "qkv": rng.standard_normal((64, 32)) / 4,
        "rope": 10.0 ** -np.arange(8),
        "head": rng.standard_normal((50, 32)) / 4,
    }
    x = b.embed("embed", 32)
    qkv = b.linear(x, ["qkv"], 64)
    q, k = (b.rope(qkv.columns(at, 16 * n), 16, "rope") for at, n in ((0, 2), (32, 1)))
    read = b.attend(q, k, qkv.columns(48, 16), heads=2, kv_heads=1, head_size=16, scale=0.25)
    program = b.finish(b.linear(b.select_rows(b.add(x, read)), ["head"], 50))
    made = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    return program, {name: Tensor(name, "F32", a.shape, a.reshape(-1).view(np.uint8)) for name, a in made.items()}


def decodes(*sequences: tuple[int, int]) -> StepBatch:
    """(sequence, position): its token there is 7 * position + sequence."""
    tables = np.stack([4 * sequence + np.arange(4)[::-1] for sequence, _ in sequences]).astype(np.int32)
    tokens = np.array([(7 * position + sequence) % 50 for sequence, position in sequences], np.int32)
    positions = np.array([position for _, position in sequences], np.int32)
    every = np.arange(len(sequences) + 1, dtype=np.int32)
    return StepBatch(tokens, positions, every, tables, every[:-1])


def with_graphs(limits: Limits = LIMITS) -> Executable:
    executable = CudaBackend("cpu").compile(*model(), limits)
    executable._make_graphs(None)
    return executable


@pytest.mark.parametrize("cache", ["bfloat16", "fp8"])
def test_a_graph_serves_every_later_step(cache: CacheType, captured: list[object]) -> None:
    limits = replace(LIMITS, cache_dtype=cache)
    ours, theirs = with_graphs(limits), ReferenceBackend().compile(*model(), limits)
    assert ours._main.graphs.sizes == [1, 2, 4, 5]
    steps = [decodes(*((sequence, position) for sequence in (2, 0, 3)[: 3 - position % 2])) for position in range(6)]
    for step in [*steps, decodes((0, 6), (1, 0), (3, 5))]:
        made, right = np.asarray(ours.run(step)), theirs.run(step)
        assert made.shape == right.shape
        np.testing.assert_allclose(made, right, atol=0.03 * np.ptp(right))
    assert len(captured) == 2, "one for up to two sequences, one for up to four"


def test_what_moves_is_captured_anew(captured: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "FIRST_TABLE_NUMBERS", 6)
    ours = with_graphs()
    ours.run(decodes((0, 0)))
    ours.run(decodes((0, 1)))
    assert len(captured) == 1
    ours.run(decodes((0, 2), (1, 0)))  # its tables need more room
    ours.run(decodes((0, 3)))
    assert len(captured) == 3
    ours._scratch.reserve(partials=1 << 20)
    ours.run(decodes((0, 4)))
    assert len(captured) == 4


def several(*sequences: tuple[int, int, int], wanted: list[int]) -> StepBatch:
    """(sequence, from, to)"""
    rows = decodes(*((sequence, position) for sequence, first, end in sequences for position in range(first, end)))
    starts = np.cumsum([0, *(end - first for _, first, end in sequences)], dtype=np.int32)
    tables = np.stack([rows.block_tables[start] for start in starts[:-1]])
    return StepBatch(rows.tokens, rows.positions, starts, tables, np.array(wanted, np.int32))


def test_what_gets_ready_is_what_real_steps_find(captured: list[object]) -> None:
    """With so many positions that attention reads them in shares."""
    ours = with_graphs(replace(LIMITS, blocks=1024))
    reserved = ours._scratch.nbytes
    ours._warm_up(ours._main)
    before = len(captured)
    assert before == len(ours._main.graphs._captured) == len(ours._main.graphs.sizes)
    ours.run(decodes((0, 0), (1, 0)))
    ours.run(decodes((0, 1), (1, 1), (2, 0)))
    assert len(captured) == before
    assert ours._scratch.nbytes == reserved


def test_guesses_run_by_the_graphs_of_as_many_sequences(captured: list[object]) -> None:
    limits = replace(LIMITS, cache_dtype="bfloat16", sequences=8, logit_rows=8)
    ours, theirs = with_graphs(limits), ReferenceBackend().compile(*model(), limits)
    for step in (
        several((3, 0, 3), (0, 0, 2), (2, 0, 1), wanted=[2, 4, 5]),
        several((0, 2, 5), (3, 3, 4), (2, 1, 4), wanted=[0, 1, 2, 3, 5, 6]),  # the last chunk's first has no use
        decodes(*((sequence, 5) for sequence in (0, 2, 3))),
        several((3, 6, 12), wanted=[]),
        several((3, 12, 14), wanted=[1]),
    ):
        made, right = np.asarray(ours.run(step)), theirs.run(step)
        assert made.shape == right.shape
        np.testing.assert_allclose(made, right, atol=0.03 * np.ptp(right) if right.size else 0)
    assert len(captured) == 3, "of eight rows, of four, of two"


def test_long_prompts_and_larger_steps_run_without(captured: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = with_graphs()
    monkeypatch.setattr(graphs, "MOST_ROWS", 2)
    ours.run(several((0, 0, 3), wanted=[2]))
    ours.run(several((0, 3, 6), (1, 0, 3), wanted=[2, 5]))
    assert captured == []
    many = Limits(4096, 900, 900, 1, 16, "bfloat16", 1)
    assert Graphs(many, ours._main.plan, ours._scratch, ours._adapters, None).sizes == list(PADDED_ROWS)


def test_a_pool_always_has_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins that are as strict as PyTorch about graphs that are captured when all others have gone."""
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    used: list[str] = []

    class Graph:
        def replay(self) -> None: ...

    @contextmanager
    def capturing(graph: Graph, pool: str, **how: object) -> Iterator[None]:
        assert alive or not used
        used.append(pool)
        alive.add(graph)
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    ours = with_graphs()
    ours._make_graphs(GraphMemory(torch.device("cpu")))
    for position in range(3):
        ours.run(decodes((0, position)))
        ours._main.drop_graphs()
        gc.collect()
    assert used == 4 * ["pool"]
