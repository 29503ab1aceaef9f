"""RMS norm and layer norm: each program some rows of one group of columns, sums in float32."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.sizes import cdiv, power_of_2

TILE_NUMBERS = 2048
"""Narrow rows share a program until it has so many numbers."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Columns that are normed together."""

    width: int
    wide: bool
    """There is a weight for each column, not one for each column of a group."""
    epsilon: float
    centred: bool = False
    """The mean is taken away (layer norm)."""


def norm(
    x: torch.Tensor,
    out: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: Groups,
) -> None:
    """x, out: [rows, width]."""
    group, wide, centred, epsilon = groups.width, groups.wide, groups.centred, groups.epsilon
    rows, width = x.shape
    block = power_of_2(group)
    tall = max(1, min(power_of_2(rows), TILE_NUMBERS // block))
    _norm[(cdiv(rows, tall), width // group)](
        x, out, weight, bias, rows, x.stride(0), out.stride(0), group, epsilon,
        WIDE=wide, CENTRED=centred, TALL=tall, BLOCK=block, num_warps=8 if block >= 4096 else 4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _norm(
    x, out, weight, bias, rows, x_stride, out_stride, group, epsilon,
    WIDE: tl.constexpr, CENTRED: tl.constexpr, TALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * TALL + tl.arange(0, TALL)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    first = tl.program_id(1) * group
    inside = (row < rows) & (column < group)
    numbers = tl.load(x + row * x_stride + first + column, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        numbers = tl.where(inside, numbers - tl.sum(numbers, axis=1, keep_dims=True) / group, 0.0)
    mean = tl.sum(numbers * numbers, axis=1, keep_dims=True) / group
    numbers = numbers / tl.sqrt(mean + epsilon)
    at = first + column if WIDE else column
    if weight is not None:
        numbers *= tl.load(weight + at, mask=column < group, other=0.0)
    if bias is not None:
        numbers += tl.load(bias + at, mask=column < group, other=0.0)
    tl.store(out + row * out_stride + first + column, numbers.to(out.dtype.element_ty), mask=inside)
