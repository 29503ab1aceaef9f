"""Norms, activations and arithmetic, row by row."""

from dataclasses import dataclass

from tokenworks.kernels.program.value import Activation, Value


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Each group of `group` columns: x / sqrt(mean(x²) + epsilon) * weight (Zhang & Sennrich 2019, arXiv 1910.07467).

    `group` is the whole width, or the head size for per-head norms (QK-norm). `weight` has `group` elements, the same
    for all groups, or if it is `wide` one for each column of x; None is ones.
    """

    output: Value
    x: Value
    weight: str | None
    epsilon: float
    group: int
    wide: bool


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """(x - mean) / sqrt(var + epsilon) * weight + bias over the whole width (arXiv 1607.06450). A bias of None is 0."""

    output: Value
    x: Value
    weight: str
    bias: str | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class Gate:
    """out = activation(gate) * up (arXiv 2002.05202).

    With a `limit` other than 0, gate counts as at most that, and up as between -limit and it. `offset` is added to up.
    """

    output: Value
    gate: Value
    up: Value
    activation: Activation
    limit: float
    offset: float


@dataclass(frozen=True, slots=True)
class Activate:
    """out = activation(x)."""

    output: Value
    x: Value
    activation: Activation


@dataclass(frozen=True, slots=True)
class Add:
    """out = a + b."""

    output: Value
    a: Value
    b: Value


@dataclass(frozen=True, slots=True)
class Scale:
    """out = x * factor."""

    output: Value
    x: Value
    factor: float


@dataclass(frozen=True, slots=True)
class ScaleRows:
    """out[t] = x[t] * by[t]; `by` is one column."""

    output: Value
    x: Value
    by: Value


@dataclass(frozen=True, slots=True)
class Multiply:
    """out = x * weight; the weight has a number for each column if it is `wide`, else one for all."""

    output: Value
    x: Value
    weight: str
    wide: bool


@dataclass(frozen=True, slots=True)
class Softcap:
    """out = cap * tanh(x / cap)."""

    output: Value
    x: Value
    cap: float
