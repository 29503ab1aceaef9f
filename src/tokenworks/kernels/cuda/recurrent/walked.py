"""States carried from row to row: a program walks a sequence's rows with its part of a head's state in registers, and
writes it down behind the rows that the step names."""

import triton
import triton.language as tl

from tokenworks.kernels.cuda.recurrent.states import begin_sequence, part_of_state, softplus, write_state


@triton.jit
def walk_scan(
    x, b, c, steps, out, decay, step_bias, skip, kept, row_starts, begins, starts, write_rows, write_slots,
    x_stride, b_stride, c_stride, steps_stride, out_stride, kept_stride, least_step, most_step,
    SHARED: tl.constexpr, HEAD: tl.constexpr, STATE: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    n, p, good_n, good_p, at, good = part_of_state(head, tl.program_id(2), STATE, HEAD, N, P)
    state, first, end, writing, end_writing = begin_sequence(
        sequence, kept, kept_stride, row_starts, begins, starts, at, good
    )
    rate, shift, passed = tl.load(decay + head), tl.load(step_bias + head), tl.load(skip + head)
    for offset in range(end - first):
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
            write_state(state, kept, kept_stride, write_slots, writing, at, good)
            writing += 1


@triton.jit
def walk_delta(
    q, k, v, steps, rates, out, decay, step_bias, kept, row_starts, begins, starts, write_rows, write_slots,
    q_stride, k_stride, v_stride, steps_stride, rates_stride, out_stride, kept_stride, epsilon, scale,
    KEY_HEADS: tl.constexpr, SHARED: tl.constexpr, ALTERNATING: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
    N: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    sequence, head = tl.program_id(0), tl.program_id(1)
    n, p, good_n, good_p, at, good = part_of_state(head, tl.program_id(2), KEY, VALUE, N, P)
    state, first, end, writing, end_writing = begin_sequence(
        sequence, kept, kept_stride, row_starts, begins, starts, at, good
    )
    rate, shift = tl.load(decay + head), tl.load(step_bias + head)
    of_key = (head % KEY_HEADS if ALTERNATING else head // SHARED) * KEY
    for offset in range(end - first):
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
            write_state(state, kept, kept_stride, write_slots, writing, at, good)
            writing += 1
