"""The recurrences of walked.py for prompts: CHUNK rows at a time, most of the work in products on the tensor cores.

Within a chunk everything is written as sums over its rows, each with the decay between the two; the state of before the
chunk comes in with the decay since its beginning. A chunk ends early behind a row whose state is written down. Of the
selective scan: arXiv 2405.21060, section 6; of the delta rule: arXiv 2406.06484 and 2412.06464. Most products are of
TF32 numbers (10 bits behind the point, more than activations' bfloat16 has), sums and states float32.
"""

import triton
import triton.language as tl

from tokenworks.kernels.cuda.recurrent.states import begin_sequence, part_of_state, softplus, write_state

CHUNK, WIDE_CHUNK = 32, 16
"""Rows of the selective scan at a time; of states with more rows than WIDE_STATE ..."""
WIDE_STATE = 128
DELTA_CHUNK = 16
"""... and of the delta rule, which solves as many equations. More would not fit the registers."""

PRECISION: tl.constexpr = tl.constexpr("tf32")


@triton.jit
def _chunk_end(start, end, write_rows, writing, end_writing, ROWS: tl.constexpr):
    """(behind the last row of the chunk, whether the state is written down there)"""
    stop = tl.minimum(start + ROWS, end)
    written = tl.load(write_rows + writing, mask=writing < end_writing, other=end + ROWS)
    return tl.minimum(stop, written + 1), written < stop


@triton.jit
def _decays(rates, ROWS: tl.constexpr):
    """Of logarithms of each row's decay [ROWS], at most 0: (since the chunk began [ROWS], the decay from the second row
    to the first [ROWS, ROWS], 0 where that is later)."""
    since = tl.cumsum(rates, 0)
    row = tl.arange(0, ROWS)
    between = since[:, None] - since[None, :]
    return since, tl.exp(tl.where(row[:, None] >= row[None, :], between, float("-inf")))


@triton.jit(do_not_specialize=["least_step", "most_step"])
def scan_chunks(
    x, b, c, steps, out, decay, step_bias, skip, kept, row_starts, begins, starts, write_rows, write_slots,
    x_stride, b_stride, c_stride, steps_stride, out_stride, kept_stride, least_step, most_step,
    SHARED: tl.constexpr, HEAD: tl.constexpr, STATE: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    n, p, good_n, good_p, at, good = part_of_state(head, tl.program_id(2), STATE, HEAD, N, P)
    i = tl.arange(0, ROWS)
    state, start, end, writing, end_writing = begin_sequence(
        sequence, kept, kept_stride, row_starts, begins, starts, at, good
    )
    rate, shift, passed = tl.load(decay + head), tl.load(step_bias + head), tl.load(skip + head)
    group = head // SHARED * STATE
    while start < end:
        stop, is_written = _chunk_end(start, end, write_rows, writing, end_writing, ROWS)
        row = (start + i).to(tl.int64)
        there = start + i < stop
        step = softplus(tl.load(steps + row * steps_stride + head, mask=there, other=0.0).to(tl.float32) + shift)
        step = tl.where(there, tl.minimum(tl.maximum(step, least_step), most_step), 0.0)
        since, between = _decays(rate * step, ROWS)
        of_x = tl.load(
            x + row[:, None] * x_stride + head * HEAD + p[None, :], mask=there[:, None] & good_p[None, :], other=0.0
        ).to(tl.float32)
        both = there[:, None] & good_n[None, :]
        of_b = tl.load(b + row[:, None] * b_stride + group + n[None, :], mask=both, other=0.0).to(tl.float32)
        of_c = tl.load(c + row[:, None] * c_stride + group + n[None, :], mask=both, other=0.0).to(tl.float32)
        brought = step[:, None] * of_x
        weights = tl.dot(of_c, tl.trans(of_b), input_precision=PRECISION) * between
        made = passed * of_x + tl.dot(of_c * tl.exp(since)[:, None], state, input_precision=PRECISION)
        made = tl.dot(weights, brought, made, input_precision=PRECISION)
        to = out + row[:, None] * out_stride + head * HEAD + p[None, :]
        tl.store(to, made.to(out.dtype.element_ty), mask=there[:, None] & good_p[None, :])
        total = tl.sum(rate * step, 0)
        left = of_b * tl.exp(total - since)[:, None]
        state = tl.dot(tl.trans(left), brought, tl.exp(total) * state, input_precision=PRECISION)
        if is_written:
            write_state(state, kept, kept_stride, write_slots, writing, at, good)
            writing += 1
        start = stop


@triton.jit
def _inverse(a, ROWS: tl.constexpr, DOUBLINGS: tl.constexpr):
    """(1 + a)^-1 of a strictly lower triangular matrix [ROWS, ROWS]: (1 - a)(1 + a^2)(1 + a^4)..., since its powers
    from ROWS = 2^(DOUBLINGS + 1) on are 0. In float32: where keys are alike, as of a repeated token, powers have
    numbers of some thousands, which cancel out."""
    row = tl.arange(0, ROWS)
    one = (row[:, None] == row[None, :]).to(tl.float32)
    power, inverse = -a, one - a
    for _ in tl.static_range(DOUBLINGS):
        power = tl.dot(power, power, input_precision="ieee")
        inverse = tl.dot(inverse, one + power, input_precision="ieee")
    return inverse


@triton.jit
def delta_chunks(
    q, k, v, steps, rates, out, decay, step_bias, kept, row_starts, begins, starts, write_rows, write_slots,
    q_stride, k_stride, v_stride, steps_stride, rates_stride, out_stride, kept_stride, epsilon, scale,
    KEY_HEADS: tl.constexpr, SHARED: tl.constexpr, ALTERNATING: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    N: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    n, p, good_n, good_p, at, good = part_of_state(head, tl.program_id(2), KEY, VALUE, N, P)
    i = tl.arange(0, ROWS)
    state, start, end, writing, end_writing = begin_sequence(
        sequence, kept, kept_stride, row_starts, begins, starts, at, good
    )
    rate, shift = tl.load(decay + head), tl.load(step_bias + head)
    of_key = (head % KEY_HEADS if ALTERNATING else head // SHARED) * KEY
    while start < end:
        stop, is_written = _chunk_end(start, end, write_rows, writing, end_writing, ROWS)
        row = (start + i).to(tl.int64)
        there = start + i < stop
        step = softplus(tl.load(steps + row * steps_stride + head, mask=there, other=0.0).to(tl.float32) + shift)
        log_decay = tl.where(there, rate * step, 0.0)
        since, between = _decays(log_decay, ROWS)
        both = there[:, None] & good_n[None, :]
        of_q = tl.load(q + row[:, None] * q_stride + of_key + n[None, :], mask=both, other=0.0).to(tl.float32)
        of_k = tl.load(k + row[:, None] * k_stride + of_key + n[None, :], mask=both, other=0.0).to(tl.float32)
        of_q = of_q * (scale / tl.sqrt(tl.sum(of_q * of_q, 1, keep_dims=True) + epsilon))
        of_k = of_k / tl.sqrt(tl.sum(of_k * of_k, 1, keep_dims=True) + epsilon)
        good_v = there[:, None] & good_p[None, :]
        of_v = tl.load(v + row[:, None] * v_stride + head * VALUE + p[None, :], mask=good_v, other=0.0).to(tl.float32)
        learnt = tl.sigmoid(tl.load(rates + row * rates_stride + head, mask=there, other=0.0).to(tl.float32))[:, None]
        decayed = tl.exp(since)[:, None]
        # What each row adds to the state depends on what those before it in the chunk have added.
        alike = tl.dot(of_k, tl.trans(of_k), input_precision=PRECISION)
        before = tl.where(i[:, None] > i[None, :], learnt * alike * between, 0.0)
        wrong = learnt * (of_v - tl.dot(of_k * decayed, state, input_precision=PRECISION))
        added = tl.dot(_inverse(before, ROWS, DOUBLINGS), wrong, input_precision=PRECISION)
        weights = tl.dot(of_q, tl.trans(of_k), input_precision=PRECISION) * between
        made = tl.dot(of_q * decayed, state, input_precision=PRECISION)
        made = tl.dot(weights, added, made, input_precision=PRECISION)
        to = out + row[:, None] * out_stride + head * VALUE + p[None, :]
        tl.store(to, made.to(out.dtype.element_ty), mask=good_v)
        total = tl.sum(log_decay, 0)
        left = of_k * tl.exp(total - since)[:, None]
        state = tl.dot(tl.trans(left), added, tl.exp(total) * state, input_precision=PRECISION)
        if is_written:
            write_state(state, kept, kept_stride, write_slots, writing, at, good)
            writing += 1
        start = stop
