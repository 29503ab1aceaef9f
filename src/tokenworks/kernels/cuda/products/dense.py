"""Products with bfloat16 weights: x [M, K] times weights [N, K], transposed.

Up to SKINNY_ROWS rows the time is that of reading the weights once, which one kernel does with the weights as the left
operand of the tensor cores (64 of their rows fill one; tokens come in 16s), shares of K spread over the chip where
there are too few tiles of N. Above, cuBLAS.
"""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.products.finish import Finish, finish_tile
from tokenworks.kernels.cuda.sizes import PROGRAMS, cdiv, power_of_2

SKINNY_ROWS = 32
LEAST_STEPS = 4
"""Of a share of K: below, starting it costs more than its reading."""
MOST_SPLITS = 16


def skinny_shape(width: int, depth: int, gated: bool) -> tuple[int, int, int]:
    """(rows of weights in a tile, columns in a step, shares of K) for `width` rows of `depth` columns, or for as many
    of gate and up each."""
    block_k = min(64 if gated else 128, max(16, power_of_2(depth)))
    steps = cdiv(depth, block_k)
    most = max(1, min(MOST_SPLITS, steps // LEAST_STEPS))
    block_n = 64
    while block_n > 16 and cdiv(width, block_n) * most < PROGRAMS // 2:
        block_n //= 2  # a small matrix: more programs are worth more than full tensor cores
    tiles = cdiv(width, block_n)

    def worth(splits: int) -> float:
        """The share of the chip at work, less the traffic of the shares' sums, in that of the weights."""
        programs = tiles * splits
        busy = programs / (cdiv(programs, PROGRAMS) * PROGRAMS)
        return float(busy) - (splits * 4 * 16 / depth if splits > 1 else 0)

    return block_n, block_k, max(range(1, most + 1), key=worth)


def scratch_of(width: int, depth: int, gated: bool) -> tuple[int, int]:
    """How many numbers and counters of scratch such a product takes at most."""
    block_n, _, splits = skinny_shape(width, depth, gated)
    tiles = cdiv(width, block_n)
    return (tiles * splits * block_n * SKINNY_ROWS * (1 + gated), tiles) if splits > 1 else (0, 0)


class Bf16Matrix:
    """Weights as they are, or rounded to bfloat16."""

    def __init__(self, weights: torch.Tensor) -> None:
        """weights: [out_features, in_features] bfloat16, contiguous."""
        self.weights = weights
        self.out_features, self.in_features = weights.shape
        self.nbytes = weights.nbytes

    def reserve(self, finish: Finish) -> None:
        """Room in the scratch for products of any number of rows."""
        gated = finish.gate is not None
        partials, counters = scratch_of(self.out_features // (1 + gated), self.in_features, gated)
        finish.scratch.reserve(partials=partials, counters=counters)
        if len(finish.out) > SKINNY_ROWS:
            reserve_large(self.out_features, finish)

    def multiply(self, x: torch.Tensor, finish: Finish) -> None:
        if x.shape[0] <= SKINNY_ROWS:
            skinny(x, self.weights, finish)
        else:
            multiply_large(x, self.weights, finish)


def _apart(finish: Finish) -> torch.dtype | None:
    """In which type a large product is kept before it is finished in a pass of its own; None: it is written to its
    place. Rounded to bfloat16 where a gate reads it or it is written so."""
    if finish.gate is None and finish.residual is None and finish.bias is None:
        return None
    return torch.float32 if finish.gate is None and finish.out.dtype == torch.float32 else torch.bfloat16


def reserve_large(features: int, finish: Finish) -> None:
    """Room in the scratch for a product of as many rows as `finish` has."""
    dtype = _apart(finish)
    if dtype is not None:
        finish.scratch.reserve(product_bytes=len(finish.out) * features * dtype.itemsize)


def multiply_large(x: torch.Tensor, weights: torch.Tensor, finish: Finish) -> None:
    """weights: [N, K] bfloat16."""
    x, dtype = x.to(torch.bfloat16), _apart(finish)
    product = finish.out if dtype is None else finish.scratch.product(x.shape[0], weights.shape[0], dtype)
    if product.dtype == torch.bfloat16:
        torch.mm(x, weights.t(), out=product)
    elif x.is_cuda:
        torch.mm(x, weights.t(), out_dtype=torch.float32, out=product)
    else:  # the CPU's mm has no wider output
        torch.mm(x.float(), weights.t().float(), out=product)
    if finish.addend is not None:
        finish.addend.add_to(product)
    if dtype is not None:
        finish.apply(product)


def skinny(x: torch.Tensor, weights: torch.Tensor, finish: Finish) -> None:
    rows = x.shape[0]
    if not rows:
        return
    width, depth, gated = finish.out.shape[1], weights.shape[1], finish.gate is not None
    block_n, block_k, splits = skinny_shape(width, depth, gated)
    block_m = 16 if rows <= 16 else 32
    tiles = cdiv(width, block_n)
    _skinny[(tiles, splits)](
        x, weights, *finish.arguments(tiles, splits, block_n * block_m), rows, width, depth, x.stride(0),
        GATE=finish.gate_name, M=block_m, N=block_n, K=block_k, SPLITS=splits, num_warps=4, num_stages=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _skinny(
    x, weights, out, out_stride, residual, residual_stride, bias, partials, counters, added, adapted, added_stride,
    limit, offset, rows, width, depth, x_stride,
    GATE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    n, m = tile * N + tl.arange(0, N), tl.arange(0, M)
    share = tl.cdiv(tl.cdiv(depth, K), SPLITS) * K
    first = split * share
    of_weights = weights + n.to(tl.int64)[:, None] * depth
    of_up = weights + (n.to(tl.int64) + width)[:, None] * depth
    of_x = x + m[None, :] * x_stride
    acc = tl.zeros([N, M], tl.float32)
    up = tl.zeros([N, M], tl.float32)
    for begin in range(first, tl.minimum(first + share, depth), K):
        k = begin + tl.arange(0, K)
        tokens = tl.load(of_x + k[:, None], mask=(k < depth)[:, None] & (m < rows)[None, :], other=0.0)
        tokens = tokens.to(tl.bfloat16)
        inside = (n < width)[:, None] & (k < depth)[None, :]
        acc = tl.dot(tl.load(of_weights + k[None, :], mask=inside, other=0.0), tokens, acc)
        if GATE is not None:
            up = tl.dot(tl.load(of_up + k[None, :], mask=inside, other=0.0), tokens, up)
    finish_tile(
        acc, up, tile, split, n, m, rows, width, out, out_stride, residual, residual_stride, bias, partials, counters,
        added, adapted, added_stride, limit, offset, GATE, SPLITS, N, M,
    )  # fmt: skip
