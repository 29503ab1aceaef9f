"""What happens to a product before it is written: shares of the inner dimension are summed, what adapters add,
a bias and the residual stream come in, a gate is applied. Kernels that hold a product in registers end with
`finish_tile`; for the others `Finish.apply` does it in one pass.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.elements.activations import gated
from tokenworks.kernels.cuda.scratch import Scratch, come_last, keep_share, sum_of_shares
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2
from tokenworks.kernels.program import Activation


@dataclass(frozen=True, slots=True)
class Gated:
    """The weights' rows are [gate; up]; what is written is activation(gate) * (up + offset), as Gate defines it."""

    activation: Activation
    limit: float
    offset: float


NO_GATE = Gated("none", 0.0, 0.0)
"""What kernels are given where there is none; they look at neither number."""


class Addend(Protocol):
    """What adapters add to a product, before anything else comes in (adapters/adapt.py). One of the two is asked for,
    once."""

    def added(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[M, N] float32, and [M] int32: which rows of it count, as they have an adapter; others' are -1."""

    def add_to(self, product: torch.Tensor) -> None:
        """product: [M, N], columns contiguous, float32 or bfloat16."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Where a product [M, N] goes, and what is done to it on the way."""

    out: torch.Tensor
    """[M, N], or [M, N / 2] with a gate; columns are contiguous, float32 or bfloat16."""
    scratch: Scratch
    residual: torch.Tensor | None = None
    """As `out`: added. May be `out` itself."""
    bias: torch.Tensor | None = None
    """[N] float32."""
    gate: Gated | None = None
    addend: Addend | None = None

    def arguments(self, tiles: int, shares: int, numbers: int) -> tuple[Any, ...]:
        """Of a launch that ends with finish_tile, from `out` to `offset`; each of `tiles` has so many numbers."""
        gate, residual = self.gate or NO_GATE, self.residual
        partials = counters = None
        if shares > 1:
            partials = self.scratch.partials(tiles * shares * numbers * (2 if self.gate else 1))
            counters = self.scratch.counters(tiles)
        added, adapted = (None, None) if self.addend is None else self.addend.added()
        return (
            self.out, self.out.stride(0), residual, 0 if residual is None else residual.stride(0), self.bias,
            partials, counters, added, adapted, 0 if added is None else added.stride(0), gate.limit, gate.offset,
        )  # fmt: skip

    @property
    def gate_name(self) -> Activation | None:
        """GATE, for kernels."""
        return None if self.gate is None else self.gate.activation

    def apply(self, product: torch.Tensor) -> None:
        """Writes `product` [M, N], contiguous, to its place; whatever the addend adds is in it."""
        rows, width = self.out.shape
        if not rows:
            return
        block = min(1024, power_of_2(width))
        tall = max(1, 2048 // block)
        gate, residual = self.gate or NO_GATE, self.residual
        _finish[(cdiv(rows, tall), cdiv(width, block))](
            product, self.out, residual, self.bias,
            rows, width, product.stride(0), self.out.stride(0), 0 if residual is None else residual.stride(0),
            gate.limit, gate.offset, GATE=self.gate_name, TALL=tall, BLOCK=block,
        )  # fmt: skip


@triton.jit
def finish_tile(
    acc, up, tile, share, n, m, rows, width, out, out_stride, residual, residual_stride, bias, partials, counters,
    added, adapted, added_stride, limit, offset,
    GATE: tl.constexpr, SHARES: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Writes one share of columns n of the product's rows m, acc [N, M] and with a gate `up` as well, to out[m, n]: the
    last of SHARES programs to come does, for all. From `out` to `offset`: Finish.arguments."""
    last = True
    if SHARES > 1:
        OF_TILE: tl.constexpr = SHARES if GATE is None else 2 * SHARES
        keep_share(acc, partials, tile, share, OF_TILE, N, M)
        if GATE is not None:
            keep_share(up, partials, tile, SHARES + share, OF_TILE, N, M)
        last = come_last(counters, tile, SHARES)
        if last:
            acc = sum_of_shares(partials, tile, 0, SHARES, OF_TILE, N, M)
            if GATE is not None:
                up = sum_of_shares(partials, tile, SHARES, SHARES, OF_TILE, N, M)
    if last:
        inside = (n < width)[:, None] & (m < rows)[None, :]
        acc = _before_gate(acc, n, m, rows, width, bias, added, adapted, added_stride, 0)
        if GATE is not None:
            up = _before_gate(up, n, m, rows, width, bias, added, adapted, added_stride, width)
            acc = gated(acc, up, GATE, limit, offset)
        if residual is not None:
            of_residual = residual + m[None, :] * residual_stride + n[:, None]
            acc += tl.load(of_residual, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + m[None, :] * out_stride + n[:, None], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _before_gate(acc, n, m, rows, width, bias, added, adapted, added_stride, first):
    """acc [N, M], which is of columns first + n: + added[m, n], for rows that have an adapter (not -1 in `adapted`),
    + bias[n], where there are such."""
    if added is not None:
        its = tl.load(adapted + m, mask=m < rows, other=-1) >= 0
        of_added = added + m[None, :] * added_stride + (first + n)[:, None]
        acc += tl.load(of_added, mask=(n < width)[:, None] & its[None, :], other=0.0)
    if bias is not None:
        acc += tl.load(bias + first + n, mask=n < width, other=0.0)[:, None]
    return acc


@triton.jit(do_not_specialize=["rows"])
def _finish(
    product, out, residual, bias, rows, width, product_stride, out_stride, residual_stride, limit, offset,
    GATE: tl.constexpr, TALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    m = (tl.program_id(0) * TALL + tl.arange(0, TALL)).to(tl.int64)[:, None]
    n = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (m < rows) & (n < width)
    x = tl.load(product + m * product_stride + n, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + n, mask=n < width, other=0.0)
    if GATE is not None:
        up = tl.load(product + m * product_stride + width + n, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            up += tl.load(bias + width + n, mask=n < width, other=0.0)
        x = gated(x, up, GATE, limit, offset)
    if residual is not None:
        x += tl.load(residual + m * residual_stride + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m * out_stride + n, x.to(out.dtype.element_ty), mask=inside)
