"""Products of experts' weights of 4 and 8 bits (products/blocks.py) with the rows that chose them (layer.py)."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.experts.pairs import Blocks, Kind, write_pairs
from tokenworks.kernels.cuda.products.block_layout import Packed
from tokenworks.kernels.cuda.products.blocks import STAGES, STEP, TILE, is_even, share_of_product


@dataclass(frozen=True, slots=True)
class PackedStack:
    """Matrices of one shape, one after the other."""

    packed: Packed
    count: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(count, rows, columns)"""
        return self.count, len(self.packed.words) // self.count, self.packed.columns

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


def launch_packed(
    x: torch.Tensor,
    weights: PackedStack,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    blocks: Blocks,
    routes: torch.Tensor | None,
    share: int,
    width: int,
    kind: Kind,
) -> None:
    how, activation, limit, offset = kind
    packed, coding = weights.packed, weights.packed.coding
    (_, expert_rows, depth), words = weights.shape, packed.words.shape[1]
    _product[(len(blocks.experts), triton.cdiv(width, TILE))](
        x, packed.words, packed.scales, packed.row_scales, bias, out, blocks.pairs, blocks.experts, routes,
        width, depth, words, x.stride(0), out.stride(0), expert_rows, 0 if routes is None else routes.stride(0),
        limit, offset,
        HOW=how, KIND=activation, SHARE=share, TOP_K=1 if routes is None else routes.shape[1] // 2,
        ASSEMBLY=coding.assembly, CONSTRAINTS=coding.constraints, CODES=coding.codes, RUN=coding.run,
        M=blocks.height, N=TILE, KW=STEP, EVEN=is_even(packed),
        num_warps=4, num_stages=STAGES[blocks.height],
    )  # fmt: skip


@triton.jit
def _product(
    x, words, scales, row_scales, bias, out, pairs, block_experts, routes,
    width, depth, row_words, x_stride, out_stride, expert_rows, routes_stride, limit, offset,
    HOW: tl.constexpr, KIND: tl.constexpr, SHARE: tl.constexpr, TOP_K: tl.constexpr,
    ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, CODES: tl.constexpr, RUN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, KW: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One block's rows and N of their expert's outputs. A pair's row of x is pair // SHARE."""
    expert = tl.load(block_experts + tl.program_id(0))
    if expert >= 0:
        n = tl.program_id(1) * N + tl.arange(0, N)
        pair = tl.load(pairs + tl.program_id(0) * M + tl.arange(0, M))
        valid = pair >= 0
        first = expert.to(tl.int64) * expert_rows
        row = first + tl.minimum(n, width - 1)  # rows behind the last are read as the last, and not written
        acc = share_of_product(
            x, words, scales, row_scales, row, pair // SHARE, valid, 0, row_words, depth, row_words, x_stride,
            ASSEMBLY, CONSTRAINTS, CODES, RUN, M, N, KW, EVEN,
        )  # fmt: skip
        up = acc
        if HOW == "gate":
            up = share_of_product(
                x, words, scales, row_scales, row + width, pair // SHARE, valid, 0, row_words, depth, row_words,
                x_stride, ASSEMBLY, CONSTRAINTS, CODES, RUN, M, N, KW, EVEN,
            )  # fmt: skip
        write_pairs(
            acc, up, pair, n, valid, bias, first, width, routes, routes_stride, out, out_stride, limit, offset,
            HOW, KIND, TOP_K,
        )  # fmt: skip
