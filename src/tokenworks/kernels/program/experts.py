"""Mixtures of experts (Shazeer et al. 2017, arXiv 1701.06538): which experts a token gets, and what they make of it."""

from dataclasses import dataclass
from typing import Literal

from tokenworks.kernels.program.value import Activation, Value


@dataclass(frozen=True, slots=True)
class Route:
    """Each row's `top_k` experts, chosen by their logits x [T, experts], and how much each counts.

    out [T, 2 * top_k]: numbers of the experts (whole floats), best first, then their weights. Scores are softmax or
    sigmoid of the logits. Those experts are chosen whose score + bias is highest, the lower number in a tie; weights
    are the scores alone, divided by their sum if `normalise`, times `scale`. Experts are in `groups` of equal size by
    number: only the `kept_groups` best groups take part, a group being worth the sum of its `group_best` highest
    scores + biases (DeepSeek-V2 and V3: arXiv 2405.04434, 2412.19437). At last each weight is multiplied by the
    expert's number in `expert_scales` [experts], if there is such a weight.
    """

    output: Value
    x: Value
    top_k: int
    score: Literal["softmax", "sigmoid"]
    normalise: bool
    scale: float
    bias: str | None
    groups: int
    kept_groups: int
    group_best: int
    expert_scales: str | None = None


@dataclass(frozen=True, slots=True)
class Expert:
    """Names of one expert's weights: gate and up [inner, width], down [width, inner]. `number` is what Route says."""

    number: int
    gate: str | None
    """None: the activation is of `up`."""
    up: str
    down: str
    gate_bias: str | None = None
    up_bias: str | None = None
    down_bias: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(name for name in (self.gate, self.up, self.down) if name is not None)

    @property
    def biases(self) -> tuple[str, ...]:
        return tuple(name for name in (self.gate_bias, self.up_bias, self.down_bias) if name is not None)


@dataclass(frozen=True, slots=True)
class Experts:
    """out[t] = sum over the experts that `routes` (of a Route) names for t: weight * down(gated(gate(x), up(x))).

    There are `count` experts in all; what is chosen and not among `experts` adds nothing, so that a device may hold
    some of a layer's. `inner` is the width of gate and up; activation, limit and offset are those of Gate.
    """

    output: Value
    x: Value
    routes: Value
    experts: tuple[Expert, ...]
    count: int
    inner: int
    activation: Activation
    limit: float
    offset: float
