"""Norms, activations and arithmetic."""

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
from tokenworks.kernels.reference.step import Float64, Step


def rmsnorm(step: Step, op: RmsNorm) -> Float64:
    x = step.load(op.x)
    groups = x.reshape(len(x), op.x.width // op.group, op.group)
    weight = np.ones(1) if op.weight is None else step.weight(op.weight).reshape(-1, op.group)
    scaled = groups / np.sqrt((groups**2).mean(axis=2, keepdims=True) + op.epsilon) * weight
    return np.asarray(scaled.reshape(x.shape), np.float64)


def layernorm(step: Step, op: LayerNorm) -> Float64:
    x = step.load(op.x)
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + op.epsilon)
    shift = 0.0 if op.bias is None else step.weight(op.bias)
    return np.asarray(scaled * step.weight(op.weight) + shift, np.float64)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def activation(kind: Activation, x: Float64) -> Float64:
    """silu and the exact gelu of arXiv 1702.03118 and 1606.08415, and the latter's approximation through tanh."""
    match kind:
        case "silu":
            return np.asarray(x * (0.5 + 0.5 * np.tanh(0.5 * x)), np.float64)
        case "gelu_tanh":
            return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))), np.float64)
        case "gelu":
            return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))), np.float64)
        case "relu2":  # arXiv 2109.08668
            return np.maximum(x, 0.0) ** 2
        case "gelu_quick":
            return x * sigmoid(1.702 * x)
        case "sigmoid":
            return sigmoid(x)
        case "none":
            return x


def sigmoid(x: Float64) -> Float64:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1.0) / (1.0 + e), np.float64)


def gate(step: Step, op: Gate) -> Float64:
    return gated(op, step.load(op.gate), step.load(op.up))


def gated(op: Gate | Experts, gate: Float64, up: Float64) -> Float64:
    if op.limit:
        gate, up = np.minimum(gate, op.limit), np.clip(up, -op.limit, op.limit)
    return activation(op.activation, gate) * (up + op.offset)


def activate(step: Step, op: Activate) -> Float64:
    return activation(op.activation, step.load(op.x))


def add(step: Step, op: Add) -> Float64:
    return step.load(op.a) + step.load(op.b)


def scale(step: Step, op: Scale) -> Float64:
    return step.load(op.x) * op.factor


def scale_rows(step: Step, op: ScaleRows) -> Float64:
    return step.load(op.x) * step.load(op.by)


def multiply(step: Step, op: Multiply) -> Float64:
    return step.load(op.x) * step.weight(op.weight)


def softcap(step: Step, op: Softcap) -> Float64:
    return np.asarray(op.cap * np.tanh(step.load(op.x) / op.cap), np.float64)
