"""Mixtures of experts: rows sorted by the expert that they chose, so that its weights are read once for all of them.

A pair is a token and one of the experts that it chose. Pairs of the same expert lie in blocks of a tile's height, each
expert's last one filled up; how many there are is known on the device alone, so that a graph holds for any routes.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.experts.blocks import PackedStack, launch_packed
from tokenworks.kernels.cuda.experts.pairs import Blocks, Kind, write_pairs
from tokenworks.kernels.cuda.experts.routing import FEW_PAIRS, sort_pairs
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2
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
    whose = weights.numbers[chosen.reshape(-1).long()]
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
    kind: Kind = ("gate" if weights.has_gates else "activate", activation, limit, offset)
    _launch(x, weights.up, weights.up_bias, made, blocks, None, top_k, inner, kind)
    plain: Kind = ("", "none", 0.0, 0.0)
    _launch(made, weights.down, weights.down_bias, shares.view(-1, width), blocks, routes, 1, width, plain)
    torch.sum(shares, dim=1, out=out)


def _launch(
    x: torch.Tensor,
    weights: torch.Tensor | PackedStack,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    blocks: Blocks,
    routes: torch.Tensor | None,
    share: int,
    width: int,
    kind: Kind,
) -> None:
    if isinstance(weights, PackedStack):
        launch_packed(x, weights, bias, out, blocks, routes, share, width, kind)
        return
    how, activation, limit, offset = kind
    depth = weights.shape[2]
    n = min(64, max(16, power_of_2(width)))
    k = min(64 if how == "gate" else 128, max(16, power_of_2(depth)))
    _product[(len(blocks.experts), cdiv(width, n))](
        x, weights, bias, out, blocks.pairs, blocks.experts, routes,
        width, depth, x.stride(0), out.stride(0), weights.shape[1], 0 if routes is None else routes.stride(0),
        limit, offset,
        HOW=how, KIND=activation, SHARE=share, TOP_K=1 if routes is None else routes.shape[1] // 2,
        M=blocks.height, N=n, K=k, num_warps=4, num_stages=4 if blocks.height == 16 else 3,
    )  # fmt: skip


@triton.jit
def _product(
    x, weights, bias, out, pairs, block_experts, routes,
    width, depth, x_stride, out_stride, expert_rows, routes_stride, limit, offset,
    HOW: tl.constexpr, KIND: tl.constexpr, SHARE: tl.constexpr, TOP_K: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One block's rows and N of their expert's outputs. A pair's row of x is pair // SHARE."""
    expert = tl.load(block_experts + tl.program_id(0))
    if expert >= 0:
        n, m = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, M)
        pair = tl.load(pairs + tl.program_id(0) * M + m)
        valid = pair >= 0
        first = expert.to(tl.int64) * expert_rows
        of_weights = weights + (first + n)[:, None] * depth
        of_up = weights + (first + n + width)[:, None] * depth
        of_x = x + (pair // SHARE).to(tl.int64)[None, :] * x_stride
        acc = tl.zeros([N, M], tl.float32)
        up = tl.zeros([N, M], tl.float32)
        for begin in range(0, depth, K):
            k = begin + tl.arange(0, K)
            tokens = tl.load(of_x + k[:, None], mask=(k < depth)[:, None] & valid[None, :], other=0.0).to(tl.bfloat16)
            inside = (n < width)[:, None] & (k < depth)[None, :]
            acc = tl.dot(tl.load(of_weights + k[None, :], mask=inside, other=0.0), tokens, acc)
            if HOW == "gate":
                up = tl.dot(tl.load(of_up + k[None, :], mask=inside, other=0.0), tokens, up)
        write_pairs(
            acc, up, pair, n, valid, bias, first, width, routes, routes_stride, out, out_stride, limit, offset,
            HOW, KIND, TOP_K,
        )  # fmt: skip
