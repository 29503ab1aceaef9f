"""Instructions with a state on the CPU: equal to the reference, and the same bits however sequences are cut."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from kernel_support import compiled, program_of, run, step
from numpy.random import Generator

from tokenworks.kernels.backend import Executable, Float32, StateBatch, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.kernels.reference import ReferenceBackend

TOKENS = 90
"""Rows of the table that plays the model's activations."""
SLOTS = 12


Body = tuple[int, Callable[[ProgramBuilder, Value], Value]]
"""Width of its input; what it does with it."""


def convolution(width: int, kernel: int, *, biased: bool = True, activated: bool = True) -> Body:
    bias = "bias" if biased else None
    return width, lambda b, x: b.short_convolution(x, f"conv{width}x{kernel}", bias, kernel, activated=activated)


def scan(heads: int, head_size: int, groups: int, state_size: int) -> Body:
    inner, shared = heads * head_size, groups * state_size

    def body(b: ProgramBuilder, x: Value) -> Value:
        return b.selective_scan(
            x.columns(0, inner), x.columns(inner, shared), x.columns(inner + shared, shared),
            x.columns(inner + 2 * shared, heads), decay="decay", step_bias="step_bias", skip="skip", heads=heads,
            groups=groups, step_range=(0.01, 2.5),
        )  # fmt: skip

    return inner + 2 * shared + heads, body


def delta(heads: int, key_heads: int, key_size: int, value_size: int, *, alternating: bool = False) -> Body:
    keys, values = key_heads * key_size, heads * value_size

    def body(b: ProgramBuilder, x: Value) -> Value:
        return b.delta_rule(
            x.columns(0, keys), x.columns(keys, keys), x.columns(2 * keys, values), x.columns(2 * keys + values, heads),
            x.columns(2 * keys + values + heads, heads), decay="decay", step_bias="step_bias", heads=heads,
            key_heads=key_heads, alternating=alternating,
        )  # fmt: skip

    return 2 * keys + values + 2 * heads, body


BODIES = {
    "convolution": convolution(96, 4),
    "convolution of 2, no bias": convolution(40, 2, biased=False),
    "convolution of 7, odd width": convolution(37, 7),
    "convolution alone": convolution(40, 2, activated=False),
    "scan": scan(4, 64, 2, 128),
    "scan, heads that fill no register": scan(3, 10, 3, 5),
    "scan, one group": scan(5, 24, 1, 20),
    "delta": delta(4, 2, 64, 32),
    "delta, odd sizes": delta(3, 1, 7, 18),
    "delta, key heads in turn": delta(6, 2, 16, 5, alternating=True),
    "delta, key heads of their own": delta(2, 2, 16, 5),
}


def arrays_for(program: Program, width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    [op] = [i for i in program.instructions if type(i).__name__ != "Embed"]
    heads = getattr(op, "heads", 1)
    arrays = {
        "x": rng.standard_normal((TOKENS, width)) * 1.5, "decay": -rng.uniform(0.01, 3, heads),
        "step_bias": rng.standard_normal(heads), "skip": rng.standard_normal(heads), "bias": rng.standard_normal(width),
    }  # fmt: skip
    if hasattr(op, "kernel"):
        arrays[op.weight] = rng.standard_normal((width, op.kernel))
    return arrays


def model(backend: object, name: str, threads: int = 2) -> Executable:
    width, body = BODIES[name]
    program = program_of(width, body)
    return compiled(backend, program, arrays_for(program, width), threads=threads, state_slots=SLOTS)  # type: ignore[arg-type]


Part = tuple[Sequence[int], int, int, dict[int, int]]
"""Tokens, position of the first, slot that the state comes from, and slot to write by position after which."""


def states_step(parts: Sequence[Part]) -> StepBatch:
    batch = step([(ids, first) for ids, first, _, _ in parts])
    writings = [
        (int(batch.row_starts[s]) + position - first, slot)
        for s, (_, first, _, written) in enumerate(parts)
        for position, slot in written.items()
    ]
    rows, slots = np.array(writings, np.int32).T.copy()
    return replace(batch, states=StateBatch(np.array([begin for _, _, begin, _ in parts], np.int32), rows, slots))


@pytest.mark.parametrize("name", BODIES)
def test_as_the_reference(name: str) -> None:
    batches = [
        states_step([(range(30), 0, -1, {29: 2}), ([40], 0, -1, {0: 0}), (range(50, 53), 0, -1, {1: 7, 2: 5})]),
        states_step([([41], 1, 0, {1: 1}), (range(53, 72), 3, 5, {10: 3, 21: 5}), (range(30, 33), 30, 2, {32: 4})]),
        states_step([(range(60, 63), 2, 7, {4: 8})]),
    ]
    ours, theirs = model(CpuBackend(), name), model(ReferenceBackend(), name)
    for batch in batches:
        want = run(theirs, batch)
        np.testing.assert_allclose(run(ours, batch), want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


def outputs(executable: Executable, rng: Generator, cuts: int, neighbours: int) -> Float32:
    """A sequence of all rows, in so many pieces, among others; now and then its state goes through another slot."""
    borders = [0, *sorted(rng.choice(np.arange(1, TOKENS), cuts, replace=False).tolist()), TOKENS]
    rows, begin = [], -1
    for start, stop in pairwise(borders):
        slot = int(rng.integers(0, 6))
        if slot == begin and rng.random() < 0.5:
            slot = (slot + 1) % 6
        before = [([int(rng.integers(TOKENS))], 0, -1, {0: 6 + i}) for i in range(neighbours)]
        middle = (start + stop) // 2
        written = {middle: 10, stop - 1: slot} if middle < stop - 1 else {stop - 1: slot}
        batch = states_step([*before, (range(start, stop), start, begin, written), (range(5), 0, -1, {4: 11})])
        made = run(executable, batch)
        rows.append(made[neighbours : neighbours + stop - start])
        begin = slot
    return np.concatenate(rows)


@pytest.mark.parametrize("name", BODIES)
def test_the_same_bits_however_it_is_cut(name: str) -> None:
    rng = np.random.default_rng(8)
    whole = run(model(CpuBackend(), name), states_step([(range(TOKENS), 0, -1, {TOKENS - 1: 0})]))
    for cuts, neighbours, threads in ((1, 0, 1), (7, 3, 3), (TOKENS - 1, 1, 2)):
        np.testing.assert_array_equal(outputs(model(CpuBackend(), name, threads), rng, cuts, neighbours), whole)


def test_a_state_is_left_as_it_was_where_it_is_only_read() -> None:
    executable = model(CpuBackend(), "scan")
    run(executable, states_step([(range(10), 0, -1, {9: 3})]))
    first = run(executable, states_step([(range(10, 14), 10, 3, {13: 4})]))
    run(executable, states_step([(range(20, 22), 10, 3, {11: 5}), (range(9), 0, -1, {8: 4})]))
    np.testing.assert_array_equal(run(executable, states_step([(range(10, 14), 10, 3, {13: 3})])), first)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (([1, 2], 0, 0, {1: 1}), "begins without a state"),
        (([1, 2], 4, -1, {5: 1}), "goes on from one within the memory"),
        (([1, 2], 4, SLOTS, {5: 1}), "goes on from one within the memory"),
        (([1, 2], 0, -1, {1: SLOTS}), "slot is outside"),
        (([1, 2], 0, -1, {0: 1}), "last state must be written"),
        (([1, 2], 0, -1, {1: 1, 0: 2}), "rows of states must ascend"),
    ],
)
def test_a_step_that_points_elsewhere_is_refused(part: Part, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        model(CpuBackend(), "scan").run(states_step([part]))
    with pytest.raises(ValueError, match="needs states"):
        model(CpuBackend(), "scan").run(step([([1], 0)]))
