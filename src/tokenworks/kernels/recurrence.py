"""What the instructions with a state compute, in float64, token after token. The formulas: kernels/recurrent.py."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.recurrent import DeltaRule, Recurrent, SelectiveScan, ShortConvolution

Float64 = npt.NDArray[np.float64]

LENGTH_EPSILON = 1e-6
"""Added to the squared length that the delta rule divides q and k by."""


def advance(
    op: Recurrent, rows: Sequence[Float64], weights: Sequence[Float64], state: Float64
) -> tuple[Float64, Float64]:
    """Over some rows of one sequence: those of `inputs_of`, with the weights of `weights_of`, from the state before
    them, flat. Returns the rows' outputs and the state behind them."""
    match op:
        case ShortConvolution():
            return _short_convolution(state, *rows, *weights)
        case SelectiveScan():
            return _selective_scan(op, state, *rows, *weights)
        case DeltaRule():
            return _delta_rule(op, state, *rows, *weights)


def _short_convolution(
    state: Float64, x: Float64, weight: Float64, bias: Float64 | float = 0.0
) -> tuple[Float64, Float64]:
    rows, kernel = len(x), weight.shape[1]
    seen = np.concatenate([state.reshape(kernel - 1, -1), x])
    out = np.asarray(bias + sum(seen[i : i + rows] * weight[:, i] for i in range(kernel)), np.float64)
    return out * _sigmoid(out), seen[rows:].reshape(-1)


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
    q, k = (_unit(u.reshape(len(v), op.key_heads, -1)).repeat(op.heads // op.key_heads, axis=1) for u in (q, k))
    q = q / op.key_size**0.5
    kept, rates = np.exp(decay * _softplus(steps + step_bias)), _sigmoid(rates)
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


def _sigmoid(x: Float64) -> Float64:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x), np.float64)
