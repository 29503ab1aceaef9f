"""Short convolutions along a sequence, whose state is the last rows before (kernels/program/recurrent.py)."""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.recurrent.states import States
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2

ROWS = 16
"""That a program computes at a time."""


def short_convolution(
    states: States,
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activated: bool,
) -> None:
    """x, out [rows, width]; weight [width, kernel] float32; the state is [kernel - 1, width]."""
    width, kernel = weight.shape
    block = min(128, power_of_2(width))
    _short_convolution[(states.sequences, cdiv(width, block))](
        x, out, weight, bias, states.kept, states.row_starts, states.begin, states.starts, states.rows, states.slots,
        width, x.stride(0), out.stride(0), states.kept.stride(0),
        KERNEL=kernel, KEPT=power_of_2(max(1, kernel - 1)), ACTIVATED=activated, R=ROWS, BLOCK=block,
    )  # fmt: skip


@triton.jit
def _seen(x, state, row, first, column, inside, x_stride, width, KERNEL: tl.constexpr):
    """Rows of a sequence, or where they lie before its first one, of its state. row [n, 1]; state: pointer, or None."""
    known = inside & (row >= first)
    numbers = tl.load(x + row.to(tl.int64) * x_stride + column, mask=known, other=0.0).to(tl.float32)
    before = row - first + KERNEL - 1
    return numbers + tl.load(state + before * width + column, mask=inside & (row < first) & (before >= 0), other=0.0)


@triton.jit
def _short_convolution(
    x, out, weight, bias, kept, row_starts, begins, starts, write_rows, write_slots,
    width, x_stride, out_stride, kept_stride,
    KERNEL: tl.constexpr, KEPT: tl.constexpr, ACTIVATED: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    first, end = tl.load(row_starts + sequence), tl.load(row_starts + sequence + 1)
    begin = tl.load(begins + sequence)
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = column < width
    state = kept + begin.to(tl.int64) * kept_stride
    has_state = inside & (begin >= 0)
    for start in range(first, end, R):
        row = (start + tl.arange(0, R))[:, None]
        made = tl.zeros([R, BLOCK], tl.float32)
        if bias is not None:
            made += tl.load(bias + column, mask=inside, other=0.0)
        for i in tl.static_range(KERNEL):
            at = row - (KERNEL - 1) + i
            good = tl.where(at >= first, inside, has_state) & (row < end)
            factor = tl.load(weight + column * KERNEL + i, mask=inside, other=0.0)
            made += factor * _seen(x, state, at, first, column, good, x_stride, width, KERNEL)
        if ACTIVATED:
            made = made * tl.sigmoid(made)
        to = out + row.to(tl.int64) * out_stride + column
        tl.store(to, made.to(out.dtype.element_ty), mask=inside & (row < end))
    kept_row = tl.arange(0, KEPT)[:, None]
    for writing in range(tl.load(starts + sequence), tl.load(starts + sequence + 1)):
        at = tl.load(write_rows + writing) - (KERNEL - 2) + kept_row
        slot = tl.load(write_slots + writing)
        good = tl.where(at >= first, inside, has_state) & (kept_row < KERNEL - 1)
        numbers = _seen(x, state, at, first, column, good, x_stride, width, KERNEL)
        tl.debug_barrier()  # all is read before some of it is written over
        to = kept + slot.to(tl.int64) * kept_stride + kept_row * width + column
        tl.store(to, numbers, mask=inside & (kept_row < KERNEL - 1) & (slot >= 0))
