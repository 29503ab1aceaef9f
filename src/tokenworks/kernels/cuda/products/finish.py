"""What happens to a product before it is written: shares of the inner dimension are summed, what adapters add,
a bias and the residual stream come in, a gate is applied. Kernels that hold a product in registers do it there
(`keep_share` and what follows it); for the others `Finish.apply` does it in one pass.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.elements.activations import gated
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2
from tokenworks.kernels.program import Activation


@dataclass(frozen=True, slots=True)
class Gated:
    """The weights' rows are [gate; up]; what is written is activation(gate) * (up + offset), as Gate defines it."""

    activation: Activation
    limit: float
    offset: float


class Addend(Protocol):
    """What adapters add to a product, before anything else comes in (adapters/adapt.py). One of the two is asked for,
    once."""

    def added(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[M, N] float32, and [M] int32: which rows of it count, as they have an adapter; others' are -1."""

    def add_to(self, product: torch.Tensor) -> None:
        """product: [M, N], columns contiguous, float32 or bfloat16."""


@dataclass(slots=True)
class Scratch:
    """Memory that products share, one after the other: sized before the first step, so that graphs may hold it."""

    device: torch.device
    _partials: torch.Tensor = field(init=False)
    _counters: torch.Tensor = field(init=False)
    _product: torch.Tensor = field(init=False)
    _weights: torch.Tensor = field(init=False)
    moves: int = field(default=0, init=False)
    """How often memory has been replaced by more of it: graphs captured before hold addresses of what is gone."""

    def __post_init__(self) -> None:
        self._partials = torch.empty(0, dtype=torch.float32, device=self.device)
        self._counters = torch.zeros(0, dtype=torch.int32, device=self.device)
        self._product = torch.empty(0, dtype=torch.uint8, device=self.device)
        self._weights = torch.empty(0, dtype=torch.bfloat16, device=self.device)

    def reserve(self, *, partials: int = 0, counters: int = 0, product_bytes: int = 0) -> None:
        """Makes room for so many; what was handed out before is void."""
        if partials > self._partials.shape[0]:
            self.moves += 1
            self._partials = torch.empty(partials, dtype=torch.float32, device=self.device)
        if counters > self._counters.shape[0]:
            self.moves += 1
            self._counters = torch.zeros(counters, dtype=torch.int32, device=self.device)
        if product_bytes > self._product.shape[0]:
            self.moves += 1
            self._product = torch.empty(product_bytes, dtype=torch.uint8, device=self.device)

    def partials(self, count: int) -> torch.Tensor:
        self.reserve(partials=count)
        return self._partials

    def counters(self, count: int) -> torch.Tensor:
        """Zeros, which every kernel that counts with them leaves as zeros."""
        self.reserve(counters=count)
        return self._counters

    def product(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """[rows, columns], contiguous."""
        count = rows * columns * dtype.itemsize
        self.reserve(product_bytes=count)
        return self._product[:count].view(dtype).view(rows, columns)

    def weights(self, rows: int, columns: int) -> torch.Tensor:
        """[rows, columns] bfloat16, contiguous: a matrix written out for a large product."""
        if rows * columns > self._weights.shape[0]:
            self.moves += 1
            self._weights = torch.empty(rows * columns, dtype=torch.bfloat16, device=self.device)
        return self._weights[: rows * columns].view(rows, columns)

    @property
    def nbytes(self) -> int:
        return self._partials.nbytes + self._counters.nbytes + self._product.nbytes + self._weights.nbytes


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

    def apply(self, product: torch.Tensor) -> None:
        """Writes `product` [M, N], contiguous, to its place; whatever the addend adds is in it."""
        rows, width = self.out.shape
        if not rows:
            return
        block = min(1024, power_of_2(width))
        tall = max(1, 2048 // block)
        gate = self.gate or Gated("none", 0.0, 0.0)
        added_stride = 0 if self.residual is None else self.residual.stride(0)
        _finish[(cdiv(rows, tall), cdiv(width, block))](
            product, self.out, self.residual, self.bias,
            rows, width, product.stride(0), self.out.stride(0), added_stride,
            gate.limit, gate.offset,
            GATE=self.gate.activation if self.gate else None, TALL=tall, BLOCK=block,
        )  # fmt: skip


@triton.jit
def keep_share(acc, partials, tile, share, SHARES: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """Writes acc [N, M], one share of tile number `tile`, to `partials`, float32 of tiles * SHARES * N * M."""
    at = tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :]
    tl.store(partials + (tile.to(tl.int64) * SHARES + share) * (N * M) + at, acc)


@triton.jit
def come_last(counters, tile, count):
    """Whether the `count` - 1 other programs of this tile have been here before. counters: int32 by tile, zeros before
    and after. What they wrote before coming can be read from now on, past this multiprocessor's cache (".cg")."""
    tl.debug_barrier()  # all threads' numbers are written before one of them says so
    last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(counters + tile, 0)
    return last


@triton.jit
def sum_of_shares(partials, tile, first, COUNT: tl.constexpr, SHARES: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """[N, M]: the sum of COUNT shares of a tile. In the same order whoever sums, so that the result is the same."""
    at = tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :]
    total = tl.zeros([N, M], tl.float32)
    for share in range(COUNT):
        of_share = partials + (tile.to(tl.int64) * SHARES + first + share) * (N * M)
        total += tl.load(of_share + at, cache_modifier=".cg")  # written by others: not from this multiprocessor's cache
    return total


@triton.jit
def with_addend(acc, n, m, rows, width, added, adapted, added_stride):
    """acc [N, M] + added[m, n], for rows that have an adapter: not -1 in `adapted`."""
    its = tl.load(adapted + m, mask=m < rows, other=-1) >= 0
    of_added = added + m[None, :] * added_stride + n[:, None]
    return acc + tl.load(of_added, mask=(n < width)[:, None] & its[None, :], other=0.0)


@triton.jit
def write_tile(acc, n, m, rows, width, out, out_stride, residual, residual_stride, bias):
    """acc [N, M] -> out[m, n]: + bias[n] + residual[m, n], where there are such."""
    inside = (n < width)[:, None] & (m < rows)[None, :]
    if bias is not None:
        acc += tl.load(bias + n, mask=n < width, other=0.0)[:, None]
    if residual is not None:
        acc += tl.load(residual + m[None, :] * residual_stride + n[:, None], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m[None, :] * out_stride + n[:, None], acc.to(out.dtype.element_ty), mask=inside)


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
