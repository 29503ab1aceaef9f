"""Norms, activations and arithmetic, each row by itself."""

import math

import numpy as np

from tokenworks.kernels.program import (
    Activate,
    Activation,
    Add,
    Experts,
    Gate,
    LayerNorm,
    Multiply,
    RmsNorm,
    Scale,
    ScaleRows,
    Softcap,
)
from tokenworks.kernels.reference.step import Floats, Operands


def rmsnorm(step: Operands, op: RmsNorm) -> Floats:
    x = step.load(op.x)
    groups = x.reshape(len(x), op.x.width // op.group, op.group)
    weight = 1.0 if op.weight is None else step.weight(op.weight).reshape(-1, op.group)
    scaled = groups / np.sqrt((groups**2).mean(axis=2, keepdims=True) + op.epsilon) * weight
    return np.asarray(scaled.reshape(x.shape))


def layernorm(step: Operands, op: LayerNorm) -> Floats:
    x = step.load(op.x)
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + op.epsilon)
    shift = 0.0 if op.bias is None else step.weight(op.bias)
    return np.asarray(scaled * step.weight(op.weight) + shift)


_exact_erf = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: Floats) -> Floats:
    """In float32 within 2e-7: Abramowitz & Stegun 7.1.26, which in double precision is within 1.5e-7."""
    if x.dtype != np.float32:
        return np.asarray(_exact_erf(x))
    size = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.asarray(np.sign(x) * (1 - series * np.exp(-size * size)), np.float32)


def activation(kind: Activation, x: Floats) -> Floats:
    """silu and the exact gelu of arXiv 1702.03118 and 1606.08415, and the latter's approximation through tanh."""
    match kind:
        case "silu":
            return np.asarray(x * (0.5 + 0.5 * np.tanh(0.5 * x)))
        case "gelu_tanh":
            return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))))
        case "gelu":
            return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))
        case "relu2":  # arXiv 2109.08668
            return np.maximum(x, 0.0) ** 2
        case "gelu_quick":
            return x * sigmoid(1.702 * x)
        case "sigmoid":
            return sigmoid(x)
        case "none":
            return x


def sigmoid(x: Floats) -> Floats:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1.0) / (1.0 + e))


def gate(step: Operands, op: Gate) -> Floats:
    return gated(op, step.load(op.gate), step.load(op.up))


def gated(op: Gate | Experts, gate: Floats, up: Floats) -> Floats:
    if op.limit:
        gate, up = np.minimum(gate, op.limit), np.clip(up, -op.limit, op.limit)
    return activation(op.activation, gate) * (up + op.offset)


def activate(step: Operands, op: Activate) -> Floats:
    return activation(op.activation, step.load(op.x))


def add(step: Operands, op: Add) -> Floats:
    return step.load(op.a) + step.load(op.b)


def scale(step: Operands, op: Scale) -> Floats:
    return step.load(op.x) * op.factor


def scale_rows(step: Operands, op: ScaleRows) -> Floats:
    return step.load(op.x) * step.load(op.by)


def multiply(step: Operands, op: Multiply) -> Floats:
    return step.load(op.x) * step.weight(op.weight)


def softcap(step: Operands, op: Softcap) -> Floats:
    return np.asarray(op.cap * np.tanh(step.load(op.x) / op.cap))
