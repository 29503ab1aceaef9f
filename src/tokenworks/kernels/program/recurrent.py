"""The instructions that carry a state from token to token: state-space models and their kin."""

from dataclasses import dataclass

from tokenworks.kernels.program.value import Value


@dataclass(frozen=True, slots=True)
class ShortConvolution:
    """Causal, each column by itself: out[t] = silu(bias + sum of weight[:, i] * x[t - kernel + 1 + i]), or without silu
    if it is not `activated`.

    `weight` is [width, kernel]. A sequence's rows before this step's are in its state, [kernel - 1, width]; before its
    first one there are zeros.
    """

    output: Value
    x: Value
    cache_layer: int
    weight: str
    bias: str | None
    kernel: int
    activated: bool = True


@dataclass(frozen=True, slots=True)
class SelectiveScan:
    """Mamba-2's recurrence (arXiv 2405.21060), token after token in each head; heads share b and c in groups.

    step = clamp(softplus(steps + step_bias), least_step, most_step); state = exp(decay * step) * state + step * b x';
    out = c' state + skip * x. `decay`, `step_bias`, `skip` are weights [heads]; x is [T, heads * head_size], b and c
    [T, groups * state_size], steps [T, heads], a sequence's state [heads, state_size, head_size].
    """

    output: Value
    x: Value
    b: Value
    c: Value
    steps: Value
    cache_layer: int
    decay: str
    step_bias: str
    skip: str
    heads: int
    head_size: int
    groups: int
    state_size: int
    least_step: float
    most_step: float


@dataclass(frozen=True, slots=True)
class DeltaRule:
    """The gated delta rule (arXiv 2412.06464), token after token in each head of v; these share q and k in groups.

    q and k are divided by their length (sqrt of the sum of squares + 1e-6), q by sqrt(key_size) too.
    state = exp(decay * softplus(steps + step_bias)) * state; state += k (sigmoid(rates) * (v - k' state))';
    out = q' state. `decay`, `step_bias` are weights [heads]; q and k are [T, key_heads * key_size], v is
    [T, heads * value_size], steps and rates [T, heads], a sequence's state [heads, key_size, value_size].
    """

    output: Value
    q: Value
    k: Value
    v: Value
    steps: Value
    rates: Value
    cache_layer: int
    decay: str
    step_bias: str
    heads: int
    key_heads: int
    key_size: int
    value_size: int
    alternating: bool = False
    """Head h has the q and k of head h % key_heads, not of h // (heads / key_heads)."""


Recurrent = ShortConvolution | SelectiveScan | DeltaRule


def inputs_of(op: Recurrent) -> tuple[Value, ...]:
    match op:
        case ShortConvolution():
            return (op.x,)
        case SelectiveScan():
            return (op.x, op.b, op.c, op.steps)
        case DeltaRule():
            return (op.q, op.k, op.v, op.steps, op.rates)


def weights_of(op: Recurrent) -> tuple[str, ...]:
    match op:
        case ShortConvolution():
            return (op.weight,) if op.bias is None else (op.weight, op.bias)
        case SelectiveScan():
            return (op.decay, op.step_bias, op.skip)
        case DeltaRule():
            return (op.decay, op.step_bias)
