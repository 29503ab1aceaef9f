"""Mixtures of experts: rows sorted by the expert that they chose, so that its weights are read once for all of them.

A pair is a token and one of the experts that it chose. Pairs of the same expert lie in blocks of a tile's height, each
expert's last one filled up; how many there are is known on the device alone, so that a graph holds for any routes.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from tokenworks.kernels.cuda.experts.blocks import PackedStack, multiply_packed
from tokenworks.kernels.cuda.experts.dense import multiply_dense
from tokenworks.kernels.cuda.experts.pairs import Blocks, PairProduct
from tokenworks.kernels.cuda.experts.routing import FEW_PAIRS, sort_pairs
from tokenworks.kernels.cuda.products.finish import Gated
from tokenworks.kernels.program import Activation

LOW_PAIRS = 16
"""Up to so many for each expert on average, tiles have 16 rows."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Of all experts that are here, one after the other: bfloat16, or packed."""

    numbers: torch.Tensor
    """[count] int64: which of them an expert's number means; as many as there are: none."""
    up: torch.Tensor | PackedStack
    """[experts, 2 * inner, width], gate above up; or [experts, inner, width] without gates."""
    down: torch.Tensor | PackedStack
    """[experts, width, inner]"""
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    """float32, as many columns as their weights have rows."""
    has_gates: bool

    @property
    def spread(self) -> bool:
        """Some experts are not here: other ranks'."""
        return len(self.numbers) > self.up.shape[0]


def blocks_of(routes: torch.Tensor, weights: ExpertWeights) -> Blocks:
    """routes: [rows, 2 * top_k] as Route writes them. No value is read on the CPU."""
    chosen = routes[:, : routes.shape[1] // 2]
    experts, pairs, device = weights.up.shape[0], chosen.numel(), chosen.device
    height = 16 if pairs <= LOW_PAIRS * experts else 64
    if pairs <= FEW_PAIRS:
        return sort_pairs(routes, weights.numbers, experts, height)
    most = pairs // height + min(experts, pairs)
    # Where launches are gone through to be compiled, nobody has written routes; no index may be out of range then.
    whose = weights.numbers[chosen.reshape(-1).long().clamp_(0, len(weights.numbers) - 1)]
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=device)
    counts.scatter_add_(0, whose, torch.ones_like(whose))
    filled = (counts + (height - 1)) // height * height
    ends = filled.cumsum(0)
    order = torch.argsort(whose, stable=True)
    by_expert = whose[order]
    place = (ends - filled - counts.cumsum(0) + counts)[by_expert] + torch.arange(pairs, device=device)
    # Behind the last block: pairs of experts that are not here.
    place = torch.where(by_expert < experts, place, most * height)
    slots = torch.full((most * height + 1,), -1, dtype=torch.int32, device=device)
    slots.scatter_(0, place, order.int())
    begins = torch.arange(most, device=device) * height
    block_experts = torch.searchsorted(ends[:experts].contiguous(), begins, right=True)
    block_experts = torch.where(block_experts < experts, block_experts, -1)
    return Blocks(height, slots[:-1], block_experts.int())


def experts(
    x: torch.Tensor,
    routes: torch.Tensor,
    out: torch.Tensor,
    weights: ExpertWeights,
    activation: Activation,
    limit: float,
    offset: float,
) -> None:
    """out[t] = the sum of what t's experts make of x[t], each times its weight. routes: [rows, 2 * top_k] as Route
    writes them; out float32."""
    rows, top_k = len(x), routes.shape[1] // 2
    inner, width = weights.down.shape[2], weights.down.shape[1]
    blocks = blocks_of(routes, weights)
    made = torch.empty((rows * top_k, inner), dtype=torch.bfloat16, device=x.device)
    make = torch.zeros if weights.spread else torch.empty
    shares = make((rows, top_k, width), dtype=torch.float32, device=x.device)
    act = Gated(activation, limit, offset)
    ends_with: Literal["gate", "activation"] = "gate" if weights.has_gates else "activation"
    _multiply(PairProduct(x, made, blocks, top_k, weights.up_bias, ends_with, act), weights.up)
    whole = shares.view(-1, width)
    _multiply(PairProduct(made, whole, blocks, 1, weights.down_bias, routes=routes), weights.down)
    torch.sum(shares, dim=1, out=out)


def _multiply(product: PairProduct, weights: torch.Tensor | PackedStack) -> None:
    if isinstance(weights, PackedStack):
        multiply_packed(product, weights)
    else:
        multiply_dense(product, weights)
