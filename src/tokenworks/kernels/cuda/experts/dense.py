"""Products of experts' bfloat16 weights with the rows that chose them (pairs.py)."""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.experts.pairs import PairProduct, write_pairs
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2


def multiply_dense(product: PairProduct, weights: torch.Tensor) -> None:
    """weights: [experts, rows, columns], contiguous."""
    _, expert_rows, columns = weights.shape
    n = min(64, max(16, power_of_2(product.width)))
    k = min(64 if product.ends_with == "gate" else 128, max(16, power_of_2(columns)))
    _product[(len(product.blocks.experts), cdiv(product.width, n))](
        weights, *product.arguments(expert_rows, columns), **product.constants,
        N=n, K=k, num_warps=4, num_stages=4 if product.blocks.height == 16 else 3,
    )  # fmt: skip


@triton.jit
def _product(
    weights, x, bias, out, pairs, block_experts, routes,
    width, depth, x_stride, out_stride, expert_rows, routes_stride, limit, offset,
    ENDS_WITH: tl.constexpr, KIND: tl.constexpr, SHARING: tl.constexpr, TOP_K: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """One block's rows and N of their expert's outputs."""
    expert = tl.load(block_experts + tl.program_id(0))
    if expert >= 0:
        n, m = tl.program_id(1) * N + tl.arange(0, N), tl.arange(0, M)
        pair = tl.load(pairs + tl.program_id(0) * M + m)
        valid = pair >= 0
        first = expert.to(tl.int64) * expert_rows
        of_weights = weights + (first + n)[:, None] * depth
        of_up = weights + (first + n + width)[:, None] * depth
        of_x = x + (pair // SHARING).to(tl.int64)[None, :] * x_stride
        acc = tl.zeros([N, M], tl.float32)
        up = tl.zeros([N, M], tl.float32)
        for begin in range(0, depth, K):
            k = begin + tl.arange(0, K)
            tokens = tl.load(of_x + k[:, None], mask=(k < depth)[:, None] & valid[None, :], other=0.0).to(tl.bfloat16)
            inside = (n < width)[:, None] & (k < depth)[None, :]
            acc = tl.dot(tl.load(of_weights + k[None, :], mask=inside, other=0.0), tokens, acc)
            if ENDS_WITH == "gate":
                up = tl.dot(tl.load(of_up + k[None, :], mask=inside, other=0.0), tokens, up)
        write_pairs(
            acc, up, pair, n, valid, bias, first, width, routes, routes_stride, out, out_stride, limit, offset,
            ENDS_WITH, KIND, TOP_K,
        )  # fmt: skip
