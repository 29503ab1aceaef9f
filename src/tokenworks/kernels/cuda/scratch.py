"""Memory that launches share, one after the other, and how programs meet in it.

Where a launch has too few tiles to fill the chip, a tile's sums are cut into shares, a program for each. Each program
leaves its share here; the last to come puts all together, always in the same order.
"""

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl


@dataclass(slots=True)
class Scratch:
    """Sized before the first step, so that graphs may hold it."""

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
