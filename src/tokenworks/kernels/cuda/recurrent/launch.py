"""Launches of what carries a state from token to token (the formulas: kernels/program/recurrent.py): a program for each
sequence, head, and part of the head's state. Where a step has many rows of a sequence they are taken by the chunk
(chunked.py), else walked (walked.py)."""

import torch

from tokenworks.kernels.cuda.recurrent.chunked import (
    CHUNK,
    DELTA_CHUNK,
    WIDE_CHUNK,
    WIDE_STATE,
    delta_chunks,
    scan_chunks,
)
from tokenworks.kernels.cuda.recurrent.states import States
from tokenworks.kernels.cuda.recurrent.walked import walk_delta, walk_scan
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2

LENGTH_EPSILON = 1e-6
"""Added to the squared length that the delta rule divides q and k by."""
STATE_NUMBERS = 4096
"""Of a program's part of a state."""
PROMPT_ROWS = 16
"""A step with so many rows more than it has sequences has a prompt."""


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
        walk_scan[(states.sequences, heads, cdiv(head, p))](*given, **sizes, N=n, P=p)
    else:
        n, p = max(16, n), max(16, p)
        rows = CHUNK if n <= WIDE_STATE else WIDE_CHUNK
        scan_chunks[(states.sequences, heads, cdiv(head, p))](*given, **sizes, N=n, P=p, ROWS=rows, num_warps=8)


def _tile(rows: int, columns: int) -> tuple[int, int]:
    """All rows of a head's state, and so many of its columns as fit."""
    n = power_of_2(rows)
    return n, max(1, min(power_of_2(columns), STATE_NUMBERS // n))


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
        walk_delta[(states.sequences, heads, cdiv(value, p))](*given, **sizes, N=n, P=p)
    else:
        n, p = max(16, n), max(16, p)
        delta_chunks[(states.sequences, heads, cdiv(value, p))](
            *given, **sizes, N=n, P=p, ROWS=DELTA_CHUNK, DOUBLINGS=DELTA_CHUNK.bit_length() - 2
        )
