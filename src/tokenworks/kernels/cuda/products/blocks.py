"""Products of bfloat16 activations with weights of 4 and 8 bits, which become bfloat16 in registers.

The weights are the left operand of the tensor cores (64 of their rows fill one), straight from the registers in which
they are decoded; tokens come in 16s. A program has 128 rows of weights and a share of their columns, so many shares
that all of the chip reads. Each code of a run of words (block_codings.py) is a product of its own with the activations
that it meets, so nothing is ever shuffled. Above FUSED_ROWS tokens decoding again for every tile of tokens would cost
more than writing the weights out once, for cuBLAS.

Compiled for sm_90 with 16 tokens the loop has 2.7 (Q4_1, Q4_K, I8), 3.2 (Q8_0), 3.5 (NVFP4), 3.7 and 4.0 (E4M3 by row
and by 64) instructions per weight; reading 4.5 bits at the speed of an H100's memory leaves time for 6.3, an H200's
for 4.4.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.loading import Loading, Source
from tokenworks.kernels.cuda.products.block_codings import E4M3_ROW
from tokenworks.kernels.cuda.products.block_layout import Packed, bring_packed
from tokenworks.kernels.cuda.products.dense import multiply_large, reserve_large
from tokenworks.kernels.cuda.products.finish import Finish, finish_tile
from tokenworks.kernels.cuda.products.fp8 import UNIT, multiply_fp8, runs_fp8
from tokenworks.kernels.cuda.sizes import PROGRAMS, cdiv

FUSED_ROWS = 256
TILE = 128
"""Rows of weights."""
STEP = 32
"""Words of a row in a step. One size for all, so that sums are made in the same order: up to 64 tokens a token's result
has the same bits, however many others are in the step."""

STAGES = {16: 4, 32: 4, 64: 3}
"""Tokens in a tile: steps in flight. All fit into the 99 KiB of shared memory that the smallest of the chips has, and
into the registers. Of 128 tokens Triton 3.6 makes a mere trap on sm_100."""

SHARE_STEPS = 4
"""A share of the columns is so many steps at least: below, starting it costs more than its reading."""


def pack_blocks(sources: Sequence[Source], loading: Loading) -> "BlockMatrix | None":
    """None where a format has no coding, or not all have the same one."""
    weights = bring_packed(sources, loading)
    return None if weights is None else BlockMatrix(weights)


def is_even(weights: Packed) -> bool:
    """Whether rows are whole steps: no load needs a mask."""
    return weights.words.shape[1] % STEP == 0 and weights.columns % (STEP * weights.coding.codes) == 0


class BlockMatrix:
    """Weights [out_features, in_features] of few bits."""

    def __init__(self, weights: Packed) -> None:
        self.weights = weights
        self.out_features, self.in_features = len(weights.words), weights.columns
        self.nbytes = weights.nbytes
        fits = weights.coding is E4M3_ROW and self.out_features % UNIT == 0
        self._in_fp8 = weights.fp8_inputs and fits and runs_fp8(weights.words.device)

    def reserve(self, finish: Finish) -> None:
        """Room in the scratch for products of any number of rows. Fused ones have no more than PROGRAMS programs where
        columns are shared out."""
        finish.scratch.reserve(partials=PROGRAMS * TILE * max(STAGES) * 2, counters=PROGRAMS)
        rows, features = len(finish.out), self.out_features
        if rows > FUSED_ROWS and self._in_fp8:
            finish.scratch.reserve(product_bytes=rows * features * torch.bfloat16.itemsize)
        elif rows > FUSED_ROWS:
            finish.scratch.weights(features, self.in_features)
            reserve_large(features, finish)

    def multiply(self, x: torch.Tensor, finish: Finish) -> None:
        rows = len(x)
        if rows > FUSED_ROWS and self._in_fp8:
            multiply_fp8(x, self.weights, finish)
        elif rows > FUSED_ROWS:
            written = finish.scratch.weights(self.out_features, self.in_features)
            self.dequantise(written)
            multiply_large(x, written, finish)
        elif rows:
            self._fused(x, finish)

    def dequantise(self, out: torch.Tensor) -> None:
        """Writes the weights to out [out_features, in_features] bfloat16, contiguous."""
        weights, coding = self.weights, self.weights.coding
        words = weights.words.shape[1]
        tall, wide = 32, 64
        _dequantise[(cdiv(self.out_features, tall), cdiv(words, wide))](
            weights.words, weights.scales, weights.row_scales, out, self.out_features, self.in_features, words,
            ASSEMBLY=coding.assembly, CONSTRAINTS=coding.constraints, CODES=coding.codes, RUN=coding.run,
            N=tall, KW=wide, EVEN=words % wide == 0, num_warps=4,
        )  # fmt: skip

    def _shape(self, width: int, rows: int, tokens: int) -> tuple[int, int]:
        """(tiles, shares of the columns)."""
        tiles = cdiv(width, TILE) * cdiv(rows, tokens)
        steps, splits = cdiv(self.weights.words.shape[1], STEP), 1
        while tiles * splits * 2 <= PROGRAMS and steps >= splits * 2 * SHARE_STEPS:
            splits *= 2
        return tiles, splits

    def _fused(self, x: torch.Tensor, finish: Finish) -> None:
        weights, coding, rows = self.weights, self.weights.coding, len(x)
        width = self.out_features // 2 if finish.gate else self.out_features
        tokens = next((each for each in STAGES if rows <= each), max(STAGES))
        tiles, splits = self._shape(width, rows, tokens)
        # A gate's two tiles and what is added to them would not fit the registers of four.
        warps = 8 if finish.addend is not None and tokens == max(STAGES) else 4
        _product[(cdiv(width, TILE), splits, cdiv(rows, tokens))](
            x, weights.words, weights.scales, weights.row_scales, *finish.arguments(tiles, splits, TILE * tokens),
            rows, width, self.in_features, weights.words.shape[1], x.stride(0),
            GATE=finish.gate_name,
            ASSEMBLY=coding.assembly, CONSTRAINTS=coding.constraints, CODES=coding.codes, RUN=coding.run,
            M=tokens, N=TILE, KW=STEP, EVEN=is_even(weights), SPLITS=splits, num_warps=warps, num_stages=STAGES[tokens],
        )  # fmt: skip


@triton.jit
def _decoded(
    words, scales, n, at, row_words,
    ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, CODES: tl.constexpr, RUN: tl.constexpr,
    N: tl.constexpr, KW: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """CODES tensors [N, KW] bfloat16, of the words at .. at + KW of rows n. The two words of a register are neighbours
    in their row, whatever layout the compiler chooses for so wide a tile, and so share their word of scales."""
    kw = at + tl.arange(0, KW)
    of_words = words + n.to(tl.int64)[:, None] * row_words + kw[None, :]
    run = at // RUN + tl.arange(0, KW // RUN)
    word = tl.load(of_words) if EVEN else tl.load(of_words, mask=(kw < row_words)[None, :], other=0)
    if scales is None:
        codes = tl.inline_asm_elementwise(
            ASSEMBLY, CONSTRAINTS, [word], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    else:
        of_scales = scales + n.to(tl.int64)[:, None] * (row_words // RUN) + run[None, :]
        scale = tl.load(of_scales) if EVEN else tl.load(of_scales, mask=(run < row_words // RUN)[None, :], other=0)
        scale = scale[:, :, None].broadcast_to(N, KW // RUN, RUN).reshape(N, KW)
        if CODES == 2:
            codes = tl.inline_asm_elementwise(
                ASSEMBLY, CONSTRAINTS, [word, scale], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
            )
        else:
            codes = tl.inline_asm_elementwise(
                ASSEMBLY, CONSTRAINTS, [word, scale],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
            )  # fmt: skip
    return codes


@triton.jit
def share_of_product(
    x, words, scales, row_scales, n, m, there, begin, end, depth, row_words, x_stride,
    ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, CODES: tl.constexpr, RUN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, KW: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """[N, M] float32: of words begin .. end of rows n, with rows m of x, where they are `there`."""
    kw = tl.arange(0, KW)
    of_x = x + m.to(tl.int64)[None, :] * x_stride
    acc = tl.zeros([N, M], tl.float32)
    for at in range(begin, end, KW):
        codes = _decoded(words, scales, n, at, row_words, ASSEMBLY, CONSTRAINTS, CODES, RUN, N, KW, EVEN)
        k = at * CODES + kw // RUN * (RUN * CODES) + kw % RUN
        for j in tl.static_range(CODES):
            if EVEN:
                tokens = tl.load(of_x + (k + j * RUN)[:, None], mask=there[None, :], other=0.0)
            else:
                inside = (k + j * RUN < depth)[:, None] & there[None, :]
                tokens = tl.load(of_x + (k + j * RUN)[:, None], mask=inside, other=0.0)
            acc = tl.dot(codes[j], tokens.to(tl.bfloat16), acc)
    return acc * tl.load(row_scales + n)[:, None]


@triton.jit(do_not_specialize=["rows"])
def _product(
    x, words, scales, row_scales, out, out_stride, residual, residual_stride, bias, partials, counters, added, adapted,
    added_stride, limit, offset, rows, width, depth, row_words, x_stride,
    GATE: tl.constexpr, ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, CODES: tl.constexpr, RUN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, KW: tl.constexpr, EVEN: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0), tl.program_id(1)
    n, m = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(2) * M + tl.arange(0, M)
    inside = tl.minimum(n, width - 1)  # rows behind the last are read as the last, and not written
    share = tl.cdiv(tl.cdiv(row_words, KW), SPLITS) * KW
    begin = split * share
    end = tl.minimum(begin + share, row_words)
    acc = share_of_product(
        x, words, scales, row_scales, inside, m, m < rows, begin, end, depth, row_words, x_stride,
        ASSEMBLY, CONSTRAINTS, CODES, RUN, M, N, KW, EVEN,
    )  # fmt: skip
    up = acc
    if GATE is not None:
        up = share_of_product(
            x, words, scales, row_scales, inside + width, m, m < rows, begin, end, depth, row_words, x_stride,
            ASSEMBLY, CONSTRAINTS, CODES, RUN, M, N, KW, EVEN,
        )  # fmt: skip
    finish_tile(
        acc, up, tile, split, n, m, rows, width, out, out_stride, residual, residual_stride, bias, partials, counters,
        added, adapted, added_stride, limit, offset, GATE, SPLITS, N, M,
    )  # fmt: skip


@triton.jit
def _dequantise(
    words, scales, row_scales, out, height, columns, row_words,
    ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, CODES: tl.constexpr, RUN: tl.constexpr,
    N: tl.constexpr, KW: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * N + tl.arange(0, N)
    inside = tl.minimum(n, height - 1)
    at, kw = tl.program_id(1) * KW, tl.arange(0, KW)
    codes = _decoded(words, scales, inside, at, row_words, ASSEMBLY, CONSTRAINTS, CODES, RUN, N, KW, EVEN)
    row_scale = tl.load(row_scales + inside)[:, None]
    k = at * CODES + kw // RUN * (RUN * CODES) + kw % RUN
    for j in tl.static_range(CODES):
        number = (codes[j].to(tl.float32) * row_scale).to(tl.bfloat16)
        of_out = out + n.to(tl.int64)[:, None] * columns + (k + j * RUN)[None, :]
        tl.store(of_out, number, mask=(n < height)[:, None] & (k + j * RUN < columns)[None, :])
