"""Products of experts' weights of 4 and 8 bits (products/blocks.py) with the rows that chose them (pairs.py)."""

from dataclasses import dataclass

import triton
import triton.language as tl

from tokenworks.kernels.cuda.experts.pairs import PairProduct, write_pairs
from tokenworks.kernels.cuda.products.block_layout import Packed
from tokenworks.kernels.cuda.products.blocks import STAGES, STEP, TILE, is_even, share_of_product
from tokenworks.kernels.cuda.sizes import cdiv


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


def multiply_packed(product: PairProduct, weights: PackedStack) -> None:
    packed, coding = weights.packed, weights.packed.coding
    _, expert_rows, columns = weights.shape
    _product[(len(product.blocks.experts), cdiv(product.width, TILE))](
        packed.words, packed.scales, packed.row_scales, packed.words.shape[1],
        *product.arguments(expert_rows, columns), **product.constants,
        ASSEMBLY=coding.assembly, CONSTRAINTS=coding.constraints, CODES=coding.codes, RUN=coding.run,
        N=TILE, KW=STEP, EVEN=is_even(packed), num_warps=4, num_stages=STAGES[product.blocks.height],
    )  # fmt: skip


@triton.jit
def _product(
    words, scales, row_scales, row_words, x, bias, out, pairs, block_experts, routes,
    width, depth, x_stride, out_stride, expert_rows, routes_stride, limit, offset,
    ENDS_WITH: tl.constexpr, KIND: tl.constexpr, SHARING: tl.constexpr, TOP_K: tl.constexpr, M: tl.constexpr,
    ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, CODES: tl.constexpr, RUN: tl.constexpr,
    N: tl.constexpr, KW: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """One block's rows and N of their expert's outputs."""
    expert = tl.load(block_experts + tl.program_id(0))
    if expert >= 0:
        n = tl.program_id(1) * N + tl.arange(0, N)
        pair = tl.load(pairs + tl.program_id(0) * M + tl.arange(0, M))
        valid = pair >= 0
        first = expert.to(tl.int64) * expert_rows
        row = first + tl.minimum(n, width - 1)  # rows behind the last are read as the last, and not written
        acc = share_of_product(
            x, words, scales, row_scales, row, pair // SHARING, valid, 0, row_words, depth, row_words, x_stride,
            ASSEMBLY, CONSTRAINTS, CODES, RUN, M, N, KW, EVEN,
        )  # fmt: skip
        up = acc
        if ENDS_WITH == "gate":
            up = share_of_product(
                x, words, scales, row_scales, row + width, pair // SHARING, valid, 0, row_words, depth, row_words,
                x_stride, ASSEMBLY, CONSTRAINTS, CODES, RUN, M, N, KW, EVEN,
            )  # fmt: skip
        write_pairs(
            acc, up, pair, n, valid, bias, first, width, routes, routes_stride, out, out_stride, limit, offset,
            ENDS_WITH, KIND, TOP_K,
        )  # fmt: skip
