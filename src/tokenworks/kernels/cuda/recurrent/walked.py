"""What carries a state from token to token (the formulas: kernels/program/recurrent.py): a program walks a sequence's
rows with a part of its state in registers, and writes it down behind the rows that the step names. Where a sequence has
many rows, it takes them by the chunk (chunked.py).

States are float32. A slot that is written may be the one that the sequence began with: it is read first.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.recurrent.chunked import CHUNK, DELTA_CHUNK, delta_chunks, scan_chunks, softplus
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2

LENGTH_EPSILON = 1e-6
"""Added to the squared length that the delta rule divides q and k by."""
STATE_NUMBERS = 4096
"""Of a program's part of a state."""
PROMPT_ROWS = 16
"""A step with so many rows more than it has sequences has a prompt."""
ROWS = 16
"""Of a convolution that a program computes at a time."""


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


def selective_scan(
    states: States,
    out: torch.Tensor,
    x: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    steps: torch.Tensor,
    decay: torch.Tensor,
    step_bias: torch.Tensor,
    skip: torch.Tensor,
    *,
    groups: int,
    step_range: tuple[float, float],
) -> None:
    """x, out [rows, heads * head_size]; b, c [rows, groups * state_size]; steps [rows, heads]."""
    heads = len(decay)
    head, state = x.shape[1] // heads, b.shape[1] // groups
    n, p = _tile(state, head)
    given = (
        x, b, c, steps, out, decay, step_bias, skip,
        states.kept, states.row_starts, states.begin, states.starts, states.rows, states.slots,
        x.stride(0), b.stride(0), c.stride(0), steps.stride(0), out.stride(0), states.kept.stride(0), *step_range,
    )  # fmt: skip
    sizes = {"SHARED": heads // groups, "HEAD": head, "STATE": state}
    if len(x) < states.sequences + PROMPT_ROWS:
        _selective_scan[(states.sequences, heads, cdiv(head, p))](*given, **sizes, N=n, P=p)
    else:
        n, p = max(16, n), max(16, p)
        scan_chunks[(states.sequences, heads, cdiv(head, p))](*given, **sizes, N=n, P=p, ROWS=CHUNK, num_warps=8)


def _tile(rows: int, columns: int) -> tuple[int, int]:
    """All rows of a head's state, and so many of its columns as fit."""
    n = power_of_2(rows)
    return n, max(1, min(power_of_2(columns), STATE_NUMBERS // n))


@triton.jit
def _selective_scan(
    x, b, c, steps, out, decay, step_bias, skip, kept, row_starts, begins, starts, write_rows, write_slots,
    x_stride, b_stride, c_stride, steps_stride, out_stride, kept_stride, least_step, most_step,
    SHARED: tl.constexpr, HEAD: tl.constexpr, STATE: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    n, p = tl.arange(0, N), tl.program_id(2) * P + tl.arange(0, P)
    good_n, good_p = n < STATE, p < HEAD
    at = head * STATE * HEAD + n[:, None] * HEAD + p[None, :]
    good = good_n[:, None] & good_p[None, :]
    begin = tl.load(begins + sequence)
    state = tl.load(kept + begin.to(tl.int64) * kept_stride + at, mask=good & (begin >= 0), other=0.0)
    rate, shift, passed = tl.load(decay + head), tl.load(step_bias + head), tl.load(skip + head)
    writing, end_writing = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    first = tl.load(row_starts + sequence)
    for offset in range(tl.load(row_starts + sequence + 1) - first):
        row = first + offset
        wide = row.to(tl.int64)
        step = softplus(tl.load(steps + wide * steps_stride + head).to(tl.float32) + shift)
        step = tl.minimum(tl.maximum(step, least_step), most_step)
        of_x = tl.load(x + wide * x_stride + head * HEAD + p, mask=good_p, other=0.0).to(tl.float32)
        group = head // SHARED * STATE
        of_b = tl.load(b + wide * b_stride + group + n, mask=good_n, other=0.0).to(tl.float32)
        of_c = tl.load(c + wide * c_stride + group + n, mask=good_n, other=0.0).to(tl.float32)
        state = tl.exp(rate * step) * state + of_b[:, None] * (step * of_x)[None, :]
        made = tl.sum(of_c[:, None] * state, axis=0) + passed * of_x
        tl.store(out + wide * out_stride + head * HEAD + p, made.to(out.dtype.element_ty), mask=good_p)
        if tl.load(write_rows + writing, mask=writing < end_writing, other=-1) == row:
            slot = tl.load(write_slots + writing)
            tl.store(kept + slot.to(tl.int64) * kept_stride + at, state, mask=good & (slot >= 0))
            writing += 1


def delta_rule(
    states: States,
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    steps: torch.Tensor,
    rates: torch.Tensor,
    decay: torch.Tensor,
    step_bias: torch.Tensor,
    *,
    key_heads: int,
    alternating: bool,
) -> None:
    """q, k [rows, key_heads * key_size]; v, out [rows, heads * value_size]; steps, rates [rows, heads]."""
    heads = len(decay)
    key, value = k.shape[1] // key_heads, v.shape[1] // heads
    n, p = _tile(key, value)
    given = (
        q, k, v, steps, rates, out, decay, step_bias,
        states.kept, states.row_starts, states.begin, states.starts, states.rows, states.slots,
        q.stride(0), k.stride(0), v.stride(0), steps.stride(0), rates.stride(0), out.stride(0), states.kept.stride(0),
        LENGTH_EPSILON, key**-0.5,
    )  # fmt: skip
    sizes = {
        "KEY_HEADS": key_heads, "SHARED": heads // key_heads, "ALTERNATING": alternating, "KEY": key, "VALUE": value
    }  # fmt: skip
    if len(q) < states.sequences + PROMPT_ROWS:
        _delta_rule[(states.sequences, heads, cdiv(value, p))](*given, **sizes, N=n, P=p)
    else:
        n, p = max(16, n), max(16, p)
        delta_chunks[(states.sequences, heads, cdiv(value, p))](
            *given, **sizes, N=n, P=p, ROWS=DELTA_CHUNK, DOUBLINGS=DELTA_CHUNK.bit_length() - 2
        )


@triton.jit
def _delta_rule(
    q, k, v, steps, rates, out, decay, step_bias, kept, row_starts, begins, starts, write_rows, write_slots,
    q_stride, k_stride, v_stride, steps_stride, rates_stride, out_stride, kept_stride, epsilon, scale,
    KEY_HEADS: tl.constexpr, SHARED: tl.constexpr, ALTERNATING: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    n, p = tl.arange(0, N), tl.program_id(2) * P + tl.arange(0, P)
    good_n, good_p = n < KEY, p < VALUE
    at = head * KEY * VALUE + n[:, None] * VALUE + p[None, :]
    good = good_n[:, None] & good_p[None, :]
    begin = tl.load(begins + sequence)
    state = tl.load(kept + begin.to(tl.int64) * kept_stride + at, mask=good & (begin >= 0), other=0.0)
    rate, shift = tl.load(decay + head), tl.load(step_bias + head)
    of_key = (head % KEY_HEADS if ALTERNATING else head // SHARED) * KEY
    writing, end_writing = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    first = tl.load(row_starts + sequence)
    for offset in range(tl.load(row_starts + sequence + 1) - first):
        row = first + offset
        wide = row.to(tl.int64)
        of_q = tl.load(q + wide * q_stride + of_key + n, mask=good_n, other=0.0).to(tl.float32)
        of_k = tl.load(k + wide * k_stride + of_key + n, mask=good_n, other=0.0).to(tl.float32)
        of_v = tl.load(v + wide * v_stride + head * VALUE + p, mask=good_p, other=0.0).to(tl.float32)
        of_q = of_q * (scale / tl.sqrt(tl.sum(of_q * of_q, axis=0) + epsilon))
        of_k = of_k / tl.sqrt(tl.sum(of_k * of_k, axis=0) + epsilon)
        state = state * tl.exp(rate * softplus(tl.load(steps + wide * steps_stride + head).to(tl.float32) + shift))
        wrong = of_v - tl.sum(of_k[:, None] * state, axis=0)
        wrong = wrong * tl.sigmoid(tl.load(rates + wide * rates_stride + head).to(tl.float32))
        state += of_k[:, None] * wrong[None, :]
        made = tl.sum(of_q[:, None] * state, axis=0)
        tl.store(out + wide * out_stride + head * VALUE + p, made.to(out.dtype.element_ty), mask=good_p)
        if tl.load(write_rows + writing, mask=writing < end_writing, other=-1) == row:
            slot = tl.load(write_slots + writing)
            tl.store(kept + slot.to(tl.int64) * kept_stride + at, state, mask=good & (slot >= 0))
            writing += 1
