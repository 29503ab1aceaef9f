"""Steps of prompts in chunks beside decodes, and how near a GPU's numbers are to the reference's.

Bound: weights are bfloat16 in the checkpoint, so what differs is the rounding of activations and of K and V to 8 bits
of mantissa, a relative error of 2^-9 each, of which some dozens add up at random on a path of a few layers. 2 % of the
spread of a row's log-probabilities is ten times what they make on average; a wrong row, position or head makes 30 %.
"""

from pathlib import Path

import numpy as np
from small_checkpoints import log_softmax

from tokenworks.kernels.backend import Executable, Limits, StateBatch, StepBatch
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint

BOUND = 0.02
BLOCK_TOKENS = 4
LIMITS = Limits(64, 4, 64, 48, BLOCK_TOKENS, "float16", 1, state_slots=4)
IDS = np.random.default_rng(3).integers(0, 101, (4, 40)).astype(np.int32)


def batch(*pieces: tuple[int, int, int] | None, wanted: list[int] | None = None) -> StepBatch:
    """A step of pieces (sequence, from, to) of IDS; a sequence's blocks lie in falling order, far from the next one's.
    None: a sequence of no meaning, as graphs are filled up with."""
    tables = np.full((len(pieces), 10), -1, np.int32)
    tokens, positions, ends, starts = [], [], [], [0]
    for row, piece in enumerate(pieces):
        sequence, first, last = piece or (0, 0, 1)
        if piece:
            tables[row] = 12 * sequence + np.arange(10)[::-1]
        tokens += IDS[sequence, first:last].tolist()
        positions += range(first, last)
        ends += range(first + 1, last + 1) if piece else [0]
        starts.append(len(tokens))
    rows = np.array(wanted if wanted is not None else range(len(tokens)), np.int32)
    slots = [piece[0] if piece else -1 for piece in pieces]
    begin = [slot if piece and piece[1] else -1 for slot, piece in zip(slots, pieces, strict=True)]
    last = [start - 1 for start in starts[1:]]
    tokens, positions, starts, ends, *states = (
        np.array(each, np.int32) for each in (tokens, positions, starts, ends, begin, last, slots)
    )
    return StepBatch(tokens, positions, starts, tables, rows, ends=ends, states=StateBatch(*states))


STEPS = [
    batch((1, 0, 23), (0, 0, 17), wanted=[22, 39]),
    batch((0, 17, 22), (2, 0, 9), (1, 23, 24), wanted=[2, 4, 13, 14]),
    batch((2, 9, 10), (1, 24, 25), (0, 22, 23), None),
]


def compiled(folder: Path, backend: ReferenceBackend | CudaBackend) -> Executable:
    checkpoint = open_checkpoint(folder)
    return backend.compile(checkpoint.program(), checkpoint.tensors, LIMITS)


def by_graph_and_eagerly(ours: Executable, step: StepBatch) -> tuple[np.ndarray, np.ndarray]:
    """What it makes of a step by its graph, and launch by launch, from the same states."""
    states = {number: each.clone() for number, each in ours._states.items()}

    def run() -> np.ndarray:
        for number, each in states.items():
            ours._states[number].copy_(each)
        return np.array(ours.run(step))

    run()  # there may be no graph yet
    by_graph = run()
    graphs, ours._main.graphs = ours._main.graphs, None
    eager = run()
    ours._main.graphs = graphs
    return by_graph, eager


def errors(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of each row's log-probabilities the largest difference, as a share of their spread."""
    ours, theirs = log_softmax(ours), log_softmax(theirs)
    return np.abs(ours - theirs).max(axis=1) / np.ptp(theirs, axis=1)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    found = errors(ours, theirs)
    assert found.max() < BOUND, found


def errors_of_steps(ours: Executable, theirs: Executable) -> np.ndarray:
    """Of each row of STEPS."""
    found = []
    for step in STEPS:
        made = np.array(ours.run(step))
        if step.ends is not None and (step.ends == 0).any():  # the reference knows no such sequences
            made, step = made[:3], batch((2, 9, 10), (1, 24, 25), (0, 22, 23))
        found.append(errors(made, theirs.run(step)))
        assert ours.finite
    return np.concatenate(found)


def assert_steps(ours: Executable, theirs: Executable) -> None:
    found = errors_of_steps(ours, theirs)
    assert found.max() < BOUND, found
