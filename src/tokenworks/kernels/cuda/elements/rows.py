"""Rows of a table, of embeddings or of another buffer; and tokens that only the device knows."""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.sizes import cdiv, power_of_2


def gather(table: torch.Tensor, index: torch.Tensor | None, out: torch.Tensor, *, scale: float = 1.0) -> None:
    """out[r] = table[index[r]] * scale: row 0 for an index beyond the table, and where `index` is None."""
    rows, width = out.shape
    block = min(1024, power_of_2(width))
    tall = max(1, min(power_of_2(rows), 2048 // block))
    _gather[(cdiv(rows, tall), cdiv(width, block))](
        table, index, out, rows, table.shape[0], width, table.stride(0), out.stride(0), scale, TALL=tall, BLOCK=block
    )


def take_drawn(tokens: torch.Tensor, drawn: torch.Tensor) -> None:
    """tokens [T] int32: -1 - i becomes drawn[i], or 0 where no token was drawn; the others stay."""
    _take_drawn[(cdiv(len(tokens), 1024),)](tokens, drawn, len(tokens), BLOCK=1024)


@triton.jit(do_not_specialize=["count"])
def _take_drawn(tokens, drawn, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + at, mask=at < count, other=0)
    late = token < 0
    found = tl.load(drawn - 1 - token, mask=late, other=0)
    tl.store(tokens + at, tl.maximum(found, 0), mask=late & (at < count))


@triton.jit(do_not_specialize=["rows"])
def _gather(
    table, index, out, rows, known, width, table_stride, out_stride, scale, TALL: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * TALL + tl.arange(0, TALL)
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    chosen = tl.zeros([TALL], tl.int32)
    if index is not None:
        chosen = tl.load(index + row, mask=row < rows, other=0)
        chosen = tl.where((chosen >= 0) & (chosen < known), chosen, 0)
    inside = (row < rows)[:, None] & (column < width)
    numbers = tl.load(table + chosen.to(tl.int64)[:, None] * table_stride + column, mask=inside, other=0.0)
    numbers = numbers.to(tl.float32) * scale
    tl.store(out + row.to(tl.int64)[:, None] * out_stride + column, numbers.to(out.dtype.element_ty), mask=inside)
