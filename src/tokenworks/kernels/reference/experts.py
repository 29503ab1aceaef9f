"""Which experts a token goes to, and what they make of it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.program import Experts, Route
from tokenworks.kernels.reference.elementwise import activation, gated, sigmoid
from tokenworks.kernels.reference.step import Float64, Floats, Operands, Step, log_sum_exp

LEAST_SUM = 1e-20
"""Added to a sum of routing weights before they are divided by it."""


def route(step: Operands, op: Route) -> Floats:
    logits = step.load(op.x)
    scores = sigmoid(logits) if op.score == "sigmoid" else np.exp(logits - log_sum_exp(logits))
    chosen = choose_experts(op, scores if op.bias is None else scores + step.weight(op.bias))
    weights = np.take_along_axis(scores, chosen, axis=1)
    if op.normalise:
        weights = weights / (weights.sum(axis=1, keepdims=True) + LEAST_SUM)
    if op.expert_scales is not None:
        weights = weights * step.weight(op.expert_scales)[chosen]
    return np.concatenate([chosen.astype(weights.dtype), weights * op.scale], axis=1)


def choose_experts(op: Route, worth: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[T, top_k] numbers of the experts of most worth, best first; `worth` [T, experts] are scores + biases."""
    grouped = worth.reshape(len(worth), op.groups, worth.shape[1] // op.groups).copy()
    of_groups = np.sort(grouped, axis=2)[:, :, -op.group_best :].sum(axis=2)
    dropped = np.argsort(-of_groups, axis=1, kind="stable")[:, op.kept_groups :]
    np.put_along_axis(grouped, dropped[:, :, None], -np.inf, axis=1)
    return np.argsort(-grouped.reshape(worth.shape), axis=1, kind="stable")[:, : op.top_k]


def experts(step: Step, op: Experts) -> Float64:
    x, routes = step.load(op.x), step.load(op.routes)
    chosen, weights = np.split(routes, 2, axis=1)
    out = np.zeros((len(x), op.output.width))
    for expert in op.experts:
        rows, places = np.nonzero(chosen == expert.number)
        if not len(rows):
            continue
        up = _expert_map(step, x[rows], expert.up, expert.up_bias)
        if expert.gate is None:
            inner = activation(op.activation, up)
        else:
            inner = gated(op, _expert_map(step, x[rows], expert.gate, expert.gate_bias), up)
        made = _expert_map(step, inner, expert.down, expert.down_bias)
        out[rows] += weights[rows, places][:, None] * made
    return out


def _expert_map(step: Step, x: Float64, weight: str, bias: str | None) -> Float64:
    product = np.asarray(x @ step.weights[weight].T.astype(np.float64), np.float64)
    return product if bias is None else product + step.weight(bias)
