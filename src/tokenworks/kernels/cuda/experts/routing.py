"""Which experts a row goes to (Route), and how few rows' pairs with them lie in blocks: a launch each, where PyTorch's
operations would be a dozen."""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.experts.pairs import Blocks
from tokenworks.kernels.cuda.sizes import power_of_2
from tokenworks.kernels.program import Route

LEAST_SUM: tl.constexpr = tl.constexpr(1e-20)
"""Added to a sum of routing weights before they are divided by it."""

FEW_PAIRS = 512
"""Up to so many one program sorts: it compares each with each."""
MOST_CHUNK, COMPARED = 64, 1 << 14
"""Pairs, or blocks, that it looks at together, if they and all experts make no more numbers than fit the registers."""


def route(
    op: Route, out: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, scales: torch.Tensor | None
) -> None:
    """x: [rows, experts]; out: [rows, 2 * top_k]; bias, scales: [experts] float32."""
    if not len(x):
        return
    size = x.shape[1] // op.groups
    kept = op.kept_groups if op.kept_groups < op.groups else 0
    _route[(len(x),)](
        x, out, bias, scales, x.stride(0), out.stride(0), op.groups, size, op.top_k, op.scale,
        SIGMOID=op.score == "sigmoid", NORMALISE=op.normalise, KEPT=kept, BEST=op.group_best,
        GROUPS=power_of_2(op.groups), SIZE=power_of_2(size),
    )  # fmt: skip


@triton.jit
def _highest(values, ids):
    """(the lowest id of a highest value, whether each one is it)"""
    best = tl.max(tl.max(values, 1), 0)
    at = tl.min(tl.min(tl.where(values == best, ids, 1 << 30), 1), 0)
    return at, ids == at


@triton.jit(do_not_specialize=["top_k"])
def _route(
    x, out, bias, scales, x_stride, out_stride, groups, size, top_k, scale,
    SIGMOID: tl.constexpr, NORMALISE: tl.constexpr, KEPT: tl.constexpr, BEST: tl.constexpr,
    GROUPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS)[:, None], tl.arange(0, SIZE)[None, :]
    ids = group * size + member
    there = (group < groups) & (member < size)
    logits = tl.load(x + row * x_stride + ids, mask=there, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        scores = tl.sigmoid(logits)
    else:
        scores = tl.exp(logits - tl.max(tl.max(logits, 1), 0))
        scores = scores / tl.sum(tl.sum(scores, 1), 0)
    worth = scores
    if bias is not None:
        worth += tl.load(bias + ids, mask=there, other=0.0)
    worth = tl.where(there, worth, float("-inf"))
    if KEPT > 0:
        left, of_group = worth, tl.zeros([GROUPS, 1], tl.float32)
        for _ in tl.static_range(BEST):
            best = tl.max(left, 1, keep_dims=True)
            of_group += best
            first = tl.min(tl.where(left == best, member, SIZE), 1, keep_dims=True)
            left = tl.where(member == first, float("-inf"), left)
        kept = group < 0
        for _ in tl.static_range(KEPT):
            _, best_left = _highest(tl.where(kept, float("-inf"), of_group), group)
            kept = kept | best_left
        worth = tl.where(kept, worth, float("-inf"))
    total = 0.0
    for i in range(top_k):
        expert, chosen = _highest(worth, ids)
        worth = tl.where(chosen, float("-inf"), worth)
        total += tl.sum(tl.sum(tl.where(chosen & there, scores, 0.0), 1), 0)
        tl.store(out + row * out_stride + i, tl.minimum(expert, groups * size - 1).to(tl.float32))
    by = scale
    if NORMALISE:
        by = scale / (total + LEAST_SUM)
    tl.debug_barrier()  # numbers of experts are read back
    for i in range(top_k):
        expert = tl.load(out + row * out_stride + i).to(tl.int32)
        weight = tl.sum(tl.sum(tl.where((ids == expert) & there, scores, 0.0), 1), 0) * by
        if scales is not None:
            weight *= tl.load(scales + expert)
        tl.store(out + row * out_stride + top_k + i, weight)


def sort_pairs(routes: torch.Tensor, numbers: torch.Tensor, experts: int, height: int) -> Blocks:
    """Of FEW_PAIRS at most. routes: [rows, 2 * top_k] as `route` writes them; numbers: [count] which of the `experts`
    here an expert is, or `experts` for none."""
    top_k = routes.shape[1] // 2
    pairs = len(routes) * top_k
    most = pairs // height + min(experts, pairs)
    slots = torch.empty(most * height, dtype=torch.int32, device=routes.device)
    whose = torch.empty(most, dtype=torch.int32, device=routes.device)
    chunk = min(MOST_CHUNK, max(1, COMPARED // power_of_2(experts)))
    _sort_pairs[(1,)](
        routes, numbers, slots, whose, pairs, top_k, routes.stride(0), experts, most,
        HEIGHT=height, EXPERTS=power_of_2(experts), CHUNK=chunk, num_warps=8,
    )  # fmt: skip
    return Blocks(height, slots, whose)


@triton.jit
def _experts_of(routes, numbers, pair, pairs, top_k, stride, experts):
    """Whose pairs are; `experts`: nobody's here."""
    at = (pair // top_k).to(tl.int64) * stride + pair % top_k
    chosen = tl.load(routes + at, mask=pair < pairs, other=0.0).to(tl.int32)
    return tl.where(pair < pairs, tl.load(numbers + chosen).to(tl.int32), experts)


@triton.jit(do_not_specialize=["pairs", "top_k", "most"])
def _sort_pairs(
    routes, numbers, slots, whose, pairs, top_k, stride, experts, most,
    HEIGHT: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    expert, i = tl.arange(0, EXPERTS), tl.arange(0, CHUNK)
    counts = tl.zeros([EXPERTS], tl.int32)
    for start in range(0, pairs, CHUNK):
        its = _experts_of(routes, numbers, start + i, pairs, top_k, stride, experts)
        counts += tl.sum((expert[:, None] == its[None, :]).to(tl.int32), 1)
    filled = tl.where(expert < experts, (counts + HEIGHT - 1) // HEIGHT * HEIGHT, 0)
    ends = tl.cumsum(filled, 0)
    for start in range(0, most, CHUNK):
        block = start + i
        before = tl.sum(((ends[:, None] <= (block * HEIGHT)[None, :]) & (expert < experts)[:, None]).to(tl.int32), 0)
        tl.store(whose + block, tl.where(before < experts, before, -1), mask=block < most)
    for start in range(0, most * HEIGHT, CHUNK):
        tl.store(slots + start + i, -1, mask=start + i < most * HEIGHT)
    tl.debug_barrier()  # before some of it is written over
    for start in range(0, pairs, CHUNK):
        pair = start + i
        its = _experts_of(routes, numbers, pair, pairs, top_k, stride, experts)
        place = tl.sum(tl.where(expert[:, None] == its[None, :], (ends - filled)[:, None], 0), 0)
        for earlier in range(0, start + CHUNK, CHUNK):
            other = earlier + i
            theirs = _experts_of(routes, numbers, other, pairs, top_k, stride, experts)
            place += tl.sum(((theirs[:, None] == its[None, :]) & (other[:, None] < pair[None, :])).to(tl.int32), 0)
        tl.store(slots + place, pair, mask=its < experts)
