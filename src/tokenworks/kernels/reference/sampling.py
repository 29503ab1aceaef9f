"""One row's token, and log-probabilities."""

import numpy as np

from tokenworks.kernels.backend import Float32, Int32
from tokenworks.kernels.reference.step import log_sum_exp


def sample_row(logits: Float32, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """The token that SampleBatch defines for one row. top_p reads the probabilities after top_k, renormalised."""
    order = np.argsort(-logits, kind="stable")
    if temperature == 0.0:
        return int(order[0])
    ordered = logits[order].astype(np.float64)
    if top_k > 0:
        ordered = ordered[:top_k]
    weights = np.exp((ordered - ordered[0]) / temperature)
    if top_p < 1.0:
        reached = np.cumsum(weights) >= top_p * weights.sum()
        weights = weights[: int(reached.argmax()) + 1]
    weights = weights[weights >= min_p * weights[0]]
    weights = weights[weights > 0.0]
    passed = np.cumsum(weights) > uniform * weights.sum()
    return int(order[int(passed.argmax()) if passed.any() else len(weights) - 1])


def log_probabilities(logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
    """What Executable.logprobs returns."""
    rows = logits.astype(np.float64)
    values = rows - log_sum_exp(rows)
    order = np.argsort(-rows, axis=1, kind="stable")
    of_chosen = np.take_along_axis(values, chosen[:, None].astype(np.int64), axis=1)[:, 0]
    ranks = (order == chosen[:, None]).argmax(axis=1) + 1
    best = order[:, :top]
    return (
        of_chosen.astype(np.float32),
        ranks.astype(np.int32),
        best.astype(np.int32),
        np.take_along_axis(values, best, axis=1).astype(np.float32),
    )
