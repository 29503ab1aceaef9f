"""Choosing experts is the definition's (kernels/program/experts.py), and few pairs lie in blocks as many do."""

import numpy as np
import pytest
import torch

from tokenworks.kernels.cuda.experts import layer as experts
from tokenworks.kernels.cuda.experts.layer import ExpertWeights, blocks_of
from tokenworks.kernels.cuda.experts.routing import route
from tokenworks.kernels.program import Route, Value
from tokenworks.kernels.reference.experts import LEAST_SUM, choose_experts

NOWHERE = Value(0, 0, 1, 1)


@pytest.mark.parametrize(
    ("op", "experts_there", "biased", "scaled"),
    [
        (Route(NOWHERE, NOWHERE, 2, "softmax", True, 1.0, None, 1, 1, 1), 11, False, False),
        (Route(NOWHERE, NOWHERE, 1, "sigmoid", False, 2.5, None, 1, 1, 1), 4, False, True),
        (Route(NOWHERE, NOWHERE, 5, "sigmoid", True, 2.5, "b", 3, 2, 2), 21, True, False),
    ],
    ids=["softmax", "one", "groups"],
)
def test_choices_are_the_definitions(op: Route, experts_there: int, biased: bool, scaled: bool) -> None:
    rng = np.random.default_rng(4)
    logits = np.round(rng.standard_normal((6, experts_there)) * 4).astype(np.float32) / 4  # with ties
    bias, scales = (rng.integers(0, 3, experts_there).astype(np.float32) / 4 for _ in range(2))
    score = torch.sigmoid if op.score == "sigmoid" else torch.nn.Softmax(1)
    scores = score(torch.from_numpy(logits)).numpy()
    chosen = choose_experts(op, scores + bias if biased else scores)
    weights = np.take_along_axis(scores, chosen, axis=1).astype(np.float64)
    if op.normalise:
        weights = weights / (weights.sum(axis=1, keepdims=True) + LEAST_SUM)
    weights *= op.scale * (scales[chosen] if scaled else 1)
    out = torch.full((6, 2 * op.top_k), torch.nan)
    given = [torch.from_numpy(each) if here else None for each, here in ((bias, biased), (scales, scaled))]
    route(op, out, torch.from_numpy(logits), *given)
    np.testing.assert_array_equal(out[:, : op.top_k].numpy(), chosen)
    np.testing.assert_allclose(out[:, op.top_k :].numpy(), weights, rtol=1e-5)


@pytest.mark.parametrize(("rows", "top_k", "there"), [(1, 3, 5), (70, 2, 9), (40, 4, 3)])
def test_few_pairs_lie_as_many_do(rows: int, top_k: int, there: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(rows)
    chosen = np.stack(
        [rng.permutation(there)[:top_k] if top_k <= there else rng.integers(0, there, top_k) for _ in range(rows)]
    )
    routes = torch.from_numpy(np.concatenate([chosen, chosen], axis=1).astype(np.float32))
    here = there - 1  # the last is not
    numbers = torch.from_numpy(np.append(rng.permutation(here), here))
    weights = ExpertWeights(numbers, torch.empty(here, 4, 4), torch.empty(here, 4, 4), None, None, True)
    few = blocks_of(routes, weights)
    monkeypatch.setattr(experts, "FEW_PAIRS", 0)
    many = blocks_of(routes, weights)
    assert few.height == many.height
    assert few.pairs.tolist() == many.pairs.tolist()
    assert few.experts.tolist() == many.experts.tolist()


def test_routes_that_nobody_has_written_are_no_index_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels are compiled, PyTorch's operations run on whatever the last step has left in memory."""
    monkeypatch.setattr(experts, "FEW_PAIRS", 0)
    garbage = torch.tensor([[torch.nan, 1e30, 0, 0], [-7, 5, 0, 0], [torch.inf, -torch.inf, 0, 0]])
    weights = ExpertWeights(torch.arange(5), torch.empty(5, 4, 4), torch.empty(5, 4, 4), None, None, True)
    blocks = blocks_of(garbage, weights)
    assert sorted(blocks.pairs[blocks.pairs >= 0].tolist()) == list(range(6))
