"""What the instructions with a state compute, token after token. The formulas: kernels/program/recurrent.py."""

from collections.abc import Sequence

import numpy as np

from tokenworks.kernels.program import DeltaRule, Recurrent, SelectiveScan, ShortConvolution
from tokenworks.kernels.program.recurrent import inputs_of, weights_of
from tokenworks.kernels.reference.elementwise import sigmoid
from tokenworks.kernels.reference.step import Float64, Step, sequences

LENGTH_EPSILON = 1e-6
"""Added to the squared length that the delta rule divides q and k by."""


def recurrent(step: Step, op: Recurrent) -> Float64:
    batch, states = step.batch, step.batch.states
    assert states is not None, "a program with recurrent layers needs StepBatch.states"
    values = [step.load(value) for value in inputs_of(op)]
    weights = [step.weight(name) for name in weights_of(op)]
    kept = step.states[op.cache_layer].astype(np.float64)  # a copy: what is read is as it was before the step
    writings = iter(zip(states.rows.tolist(), states.slots.tolist(), strict=True))
    outputs: list[Float64] = []
    for (start, stop), begin in zip(sequences(batch), states.begin.tolist(), strict=True):
        state = kept[begin] if begin >= 0 else np.zeros(kept.shape[1])
        while start < stop:
            row, slot = next(writings)
            made, state = advance(op, [value[start : row + 1] for value in values], weights, state)
            outputs.append(made)
            step.states[op.cache_layer][slot] = state
            start = row + 1
    return np.concatenate(outputs)


def advance(
    op: Recurrent, rows: Sequence[Float64], weights: Sequence[Float64], state: Float64
) -> tuple[Float64, Float64]:
    """Over some rows of one sequence: those of `inputs_of`, with the weights of `weights_of`, from the state before
    them, flat. Returns the rows' outputs and the state behind them."""
    match op:
        case ShortConvolution():
            return _short_convolution(op, state, *rows, *weights)
        case SelectiveScan():
            return _selective_scan(op, state, *rows, *weights)
        case DeltaRule():
            return _delta_rule(op, state, *rows, *weights)


def _short_convolution(
    op: ShortConvolution, state: Float64, x: Float64, weight: Float64, bias: Float64 | float = 0.0
) -> tuple[Float64, Float64]:
    rows, kernel = len(x), weight.shape[1]
    seen = np.concatenate([state.reshape(kernel - 1, -1), x])
    out = np.asarray(bias + sum(seen[i : i + rows] * weight[:, i] for i in range(kernel)), np.float64)
    return out * sigmoid(out) if op.activated else out, seen[rows:].reshape(-1)


def _selective_scan(
    op: SelectiveScan,
    state: Float64,
    x: Float64,
    b: Float64,
    c: Float64,
    steps: Float64,
    decay: Float64,
    step_bias: Float64,
    skip: Float64,
) -> tuple[Float64, Float64]:
    h = state.reshape(op.heads, op.state_size, op.head_size)
    x = x.reshape(-1, op.heads, op.head_size)
    b, c = (v.reshape(len(x), op.groups, op.state_size).repeat(op.heads // op.groups, axis=1) for v in (b, c))
    steps = np.clip(_softplus(steps + step_bias), op.least_step, op.most_step)
    out = np.empty_like(x)
    for row in range(len(x)):
        step = steps[row][:, None]
        h = np.exp(decay * steps[row])[:, None, None] * h + b[row][:, :, None] * (step * x[row])[:, None, :]
        out[row] = np.einsum("hn,hnp->hp", c[row], h) + skip[:, None] * x[row]
    return out.reshape(len(x), -1), h.reshape(-1)


def _delta_rule(
    op: DeltaRule,
    state: Float64,
    q: Float64,
    k: Float64,
    v: Float64,
    steps: Float64,
    rates: Float64,
    decay: Float64,
    step_bias: Float64,
) -> tuple[Float64, Float64]:
    h = state.reshape(op.heads, op.key_size, op.value_size)
    v = v.reshape(-1, op.heads, op.value_size)
    heads = np.arange(op.heads)
    shared = heads % op.key_heads if op.alternating else heads // (op.heads // op.key_heads)
    q, k = (_unit(u.reshape(len(v), op.key_heads, -1))[:, shared] for u in (q, k))
    q = q / op.key_size**0.5
    kept, rates = np.exp(decay * _softplus(steps + step_bias)), sigmoid(rates)
    out = np.empty_like(v)
    for row in range(len(v)):
        h = kept[row][:, None, None] * h
        wrong = rates[row][:, None] * (v[row] - np.einsum("hk,hkv->hv", k[row], h))
        h = h + k[row][:, :, None] * wrong[:, None, :]
        out[row] = np.einsum("hk,hkv->hv", q[row], h)
    return out.reshape(len(v), -1), h.reshape(-1)


def _unit(x: Float64) -> Float64:
    return np.asarray(x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + LENGTH_EPSILON), np.float64)


def _softplus(x: Float64) -> Float64:
    return np.logaddexp(0.0, x)
