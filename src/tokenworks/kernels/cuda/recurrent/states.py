"""Recurrent states that a step's sequences begin with and leave behind, and how kernels come to theirs.

States are float32. A slot that is written may be the one that the sequence began with: it is read first.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class States:
    """Where a step's sequences find their states, int32; [slots, floats] float32 themselves."""

    kept: torch.Tensor
    row_starts: torch.Tensor
    begin: torch.Tensor
    """[sequences] slot; -1: zeros."""
    starts: torch.Tensor
    """[sequences + 1]: writings starts[s] .. starts[s + 1] are of sequence s."""
    rows: torch.Tensor
    slots: torch.Tensor
    """[writings] the state behind that row goes to this slot; -1: nowhere."""

    @property
    def sequences(self) -> int:
        return len(self.begin)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def part_of_state(head, part, ROWS: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, P: tl.constexpr):
    """Part number `part`, P columns, of a head's state [ROWS, COLUMNS]: (its rows [N], its columns [P], which of the
    former and of the latter there are, where in a slot the part's numbers lie [N, P], which of them there are)."""
    n, p = tl.arange(0, N), part * P + tl.arange(0, P)
    good_n, good_p = n < ROWS, p < COLUMNS
    at = head * ROWS * COLUMNS + n[:, None] * COLUMNS + p[None, :]
    return n, p, good_n, good_p, at, good_n[:, None] & good_p[None, :]


@triton.jit
def begin_sequence(sequence, kept, kept_stride, row_starts, begins, starts, at, good):
    """(the state before its first row, its first row, the row behind its last, its first writing, the one behind its
    last)"""
    begin = tl.load(begins + sequence)
    state = tl.load(kept + begin.to(tl.int64) * kept_stride + at, mask=good & (begin >= 0), other=0.0)
    first, end = tl.load(row_starts + sequence), tl.load(row_starts + sequence + 1)
    writing, end_writing = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    return state, first, end, writing, end_writing


@triton.jit
def write_state(state, kept, kept_stride, write_slots, writing, at, good):
    slot = tl.load(write_slots + writing)
    tl.store(kept + slot.to(tl.int64) * kept_stride + at, state, mask=good & (slot >= 0))
