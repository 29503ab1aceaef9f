"""States walked row by row and by the chunk: the definition's numbers, wherever a chunk ends."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tokenworks.kernels.cuda.recurrent import launch
from tokenworks.kernels.cuda.recurrent.launch import delta_rule, selective_scan
from tokenworks.kernels.cuda.recurrent.states import States
from tokenworks.kernels.program import DeltaRule, SelectiveScan, Value
from tokenworks.kernels.reference.recurrent import advance

NOWHERE = Value(0, 0, 1, 1)
LENGTHS = (70, 1, 35)
BEGIN = (-1, 2, 3)
WRITINGS = ((4, 0), (36, 5), (69, -1), (70, 2), (81, 6), (105, 3))
"""(row, slot): in a chunk's middle, at its end, at a sequence's, nowhere, over the state that was read."""
SLOTS = 8
CHUNKS_BOUND = 2**-8
"""Products of TF32 numbers."""

Run = Callable[[States, torch.Tensor, list[torch.Tensor], list[torch.Tensor]], None]


def scan(heads: int, head: int, groups: int, state: int) -> tuple[SelectiveScan, list[int], Run, int]:
    op = SelectiveScan(*[NOWHERE] * 5, 0, "", "", "", heads, head, groups, state, 0.01, 2.5)

    def run(states: States, out: torch.Tensor, values: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
        selective_scan(states, out, *values, *weights, groups=groups, step_range=(0.01, 2.5))

    return op, [heads * head, groups * state, groups * state, heads], run, heads * head * state


def delta(heads: int, key_heads: int, key: int, value: int, alternating: bool) -> tuple[DeltaRule, list[int], Run, int]:
    op = DeltaRule(*[NOWHERE] * 6, 0, "", "", heads, key_heads, key, value, alternating)

    def run(states: States, out: torch.Tensor, values: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
        delta_rule(states, out, *values, *weights, key_heads=key_heads, alternating=alternating)

    return op, [key_heads * key, key_heads * key, heads * value, heads, heads], run, heads * key * value


SCAN, DELTA, IN_TURN = scan(4, 20, 2, 12), delta(2, 1, 24, 20, False), delta(4, 2, 16, 16, True)


def numbers_for(op: SelectiveScan | DeltaRule, widths: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What changes from row to row; weights of the heads."""
    rng = np.random.default_rng(3)
    values = [rng.standard_normal((sum(LENGTHS), width)).astype(np.float32) for width in widths]
    weights = [-rng.uniform(0.01, 2, op.heads), rng.standard_normal(op.heads), rng.standard_normal(op.heads)]
    return values, [each.astype(np.float32) for each in weights[: 3 if isinstance(op, SelectiveScan) else 2]]


def assert_definitions(
    case: tuple[SelectiveScan | DeltaRule, list[int], Run, int],
    values: list[np.ndarray],
    weights: list[np.ndarray],
    bound: float,
) -> None:
    """bound: of errors, as a share of the largest number."""
    op, _, run, floats = case
    kept = np.random.default_rng(4).standard_normal((SLOTS, floats)).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    expected, made = kept.astype(np.float64), []
    writings = iter(WRITINGS)
    for begin, start, stop in zip(BEGIN, starts, starts[1:], strict=False):
        state = kept[begin].astype(np.float64) if begin >= 0 else np.zeros(floats)
        while start < stop:
            row, slot = next(writings)
            some, state = advance(op, [each[start : row + 1].astype(np.float64) for each in values], weights, state)
            made.append(some)
            if slot >= 0:
                expected[slot] = state
            start = row + 1
    right = np.concatenate(made)
    out = torch.full(right.shape, torch.nan, dtype=torch.float32)
    whole = [np.searchsorted([row for row, _ in WRITINGS], starts), *zip(*WRITINGS, strict=True)]
    tensors = [torch.tensor(np.array(each), dtype=torch.int32) for each in (starts, BEGIN, *whole)]
    states = States(torch.from_numpy(kept), *tensors)
    run(states, out, [torch.from_numpy(each) for each in values], [torch.from_numpy(each) for each in weights])
    np.testing.assert_allclose(out.numpy(), right, rtol=0, atol=bound * np.abs(right).max())
    np.testing.assert_allclose(states.kept.numpy(), expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("by_chunks", [False, True])
@pytest.mark.parametrize("case", [SCAN, DELTA, IN_TURN], ids=["scan", "delta", "in turn"])
def test_states_are_the_definitions(
    case: tuple[SelectiveScan | DeltaRule, list[int], Run, int], by_chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "PROMPT_ROWS", 16 if by_chunks else sum(LENGTHS))
    assert_definitions(case, *numbers_for(*case[:2]), bound=CHUNKS_BOUND if by_chunks else 1e-5)


def test_keys_that_are_all_but_the_same() -> None:
    """As of a token that is repeated: what each row adds depends on all before it."""
    values, weights = numbers_for(*DELTA[:2])
    _, k, _, steps, rates = values
    k[:] = k[0] + 0.02 * k
    steps[:], rates[:], weights[0][:] = 0, 3, -0.01
    assert_definitions(DELTA, values, weights, CHUNKS_BOUND)
