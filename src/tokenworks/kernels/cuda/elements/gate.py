"""Gates and activations that no product takes over."""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.elements.activations import activate, gated
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2
from tokenworks.kernels.program import Activation


def gate(
    x: torch.Tensor, up: torch.Tensor | None, out: torch.Tensor, activation: Activation, limit: float, offset: float
) -> None:
    """out = activation(x) * (up + offset), as Gate defines it; without `up` the activation alone. All [rows, width]."""
    rows, width = out.shape
    block = min(1024, power_of_2(width))
    tall = max(1, min(power_of_2(rows), 2048 // block))
    _gate[(cdiv(rows, tall), cdiv(width, block))](
        x, up, out, rows, width, x.stride(0), 0 if up is None else up.stride(0), out.stride(0), limit, offset,
        KIND=activation, TALL=tall, BLOCK=block,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _gate(
    x, up, out, rows, width, x_stride, up_stride, out_stride, limit, offset,
    KIND: tl.constexpr, TALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * TALL + tl.arange(0, TALL)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (row < rows) & (column < width)
    numbers = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if up is None:
        numbers = activate(numbers, KIND)
    else:
        above = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
        numbers = gated(numbers, above, KIND, limit, offset)
    tl.store(out + row * out_stride + column, numbers.to(out.dtype.element_ty), mask=inside)
