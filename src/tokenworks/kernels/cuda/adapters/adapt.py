"""What low-rank adapters add to a product: scale * up (down x) for the rows whose sequence has one (arXiv 2106.09685).

Two launches for a product, whatever adapters a step mixes (Punica's, arXiv 2310.18547): rows lie in blocks of one
adapter's, each block meets that adapter's `down`, then its `up`. A row's sums are made in the same order whoever else
is in the step, and rows without an adapter are never touched. Products that hold their sums in registers read what is
added before a gate or a residual comes in; the others have it added to what they wrote.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import triton
import triton.language as tl

from tokenworks.kernels.backend import Int32
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2

BLOCK_ROWS = 16
"""What the tensor cores take."""
LEAST_RANK, MOST_RANK_TILE = 16, 64
WIDE = 128
"""Columns of a tile of what is added."""
STEP = 128
"""Columns of x that a program takes at a time."""
SHARE = 512
"""Columns of x in a share: with few rows there would be too few programs at work otherwise."""
MOST_SHARES = 16
FEW_ROWS = 256
"""Steps of more rows fill the chip without shares."""


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Of a step's rows of one kind; int32, on the device."""

    slots: torch.Tensor
    """[rows]: of each row's adapter; -1: it has none."""
    blocks: torch.Tensor
    """[blocks, BLOCK_ROWS] rows of one adapter; -1: none."""
    block_slots: torch.Tensor
    """[blocks]; -1: nobody's block."""


def blocks_of(slots: Int32, most: int) -> tuple[Int32, Int32]:
    """AdaptedRows' blocks and their slots, of `slots` by row, `most` of which may be different: how many blocks there
    are depends on the numbers of rows and slots alone, so that a graph holds for any adapters."""
    count = len(slots) // BLOCK_ROWS + min(len(slots), most)
    blocks = np.full((count, BLOCK_ROWS), -1, np.int32)
    owners, flat, at = np.full(count, -1, np.int32), blocks.reshape(-1), 0
    for slot in np.unique(slots[slots >= 0]).tolist():
        rows = np.flatnonzero(slots == slot)
        flat[at * BLOCK_ROWS : at * BLOCK_ROWS + len(rows)] = rows
        owners[at : (at := at + cdiv(len(rows), BLOCK_ROWS))] = slot
    return blocks, owners


@dataclass(slots=True)
class Room:
    """Memory that the adapters of all products share, one product after the other."""

    device: torch.device
    _inner: torch.Tensor = field(init=False)
    _added: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._inner = torch.empty(0, dtype=torch.float32, device=self.device)
        self._added = torch.empty(0, dtype=torch.float32, device=self.device)

    def reserve(self, inner: int, added: int) -> bool:
        """Makes room for so many numbers; whether what was handed out before is void."""
        moved = False
        if inner > len(self._inner):
            self._inner, moved = torch.empty(inner, dtype=torch.float32, device=self.device), True
        if added > len(self._added):
            self._added, moved = torch.empty(added, dtype=torch.float32, device=self.device), True
        return moved

    def free(self) -> None:
        self.__post_init__()

    def inner(self) -> torch.Tensor:
        return self._inner

    def added(self, rows: int, columns: int) -> torch.Tensor:
        return self._added[: rows * columns].view(rows, columns)

    @property
    def nbytes(self) -> int:
        return self._inner.nbytes + self._added.nbytes


class Table:
    """What the adapters of all slots do to the weights of one product, which lie one below the other: segments."""

    def __init__(self, slots: int, rank: int, heights: Sequence[int], width: int, device: torch.device) -> None:
        """rank: of the largest. heights: rows of each weight; width: their columns."""
        self.slots, self.heights, self.width = slots, tuple(heights), width
        self.rank = max(LEAST_RANK, power_of_2(rank))
        shape = (slots, len(heights))
        self.downs = torch.zeros((*shape, self.rank, width), dtype=torch.bfloat16, device=device)
        self.ups = torch.zeros((slots, sum(heights), self.rank), dtype=torch.bfloat16, device=device)
        self.ranks = torch.zeros(shape, dtype=torch.int32, device=device)
        self.scales = torch.zeros(shape, dtype=torch.float32, device=device)
        tiles, end = [], 0
        for segment, height in enumerate(heights):
            first, end = end, end + height
            tiles += [(segment, at, end) for at in range(first, end, WIDE)]
        self.tiles = torch.tensor(tiles, dtype=torch.int32).to(device)

    @property
    def out_features(self) -> int:
        return sum(self.heights)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.downs, self.ups, self.ranks, self.scales, self.tiles))

    def numbers(self, rows: int) -> tuple[int, int]:
        """Of Room's inner and added, for steps of up to so many rows."""
        few = min(rows, FEW_ROWS)
        inner = max(rows, few * _shares(self.width, few)) * len(self.heights) * self.rank
        return inner, few * self.out_features

    def take(self, other: "Table") -> None:
        """All that is in `other`, which has no more slots and no larger rank."""
        self.downs[: other.slots, :, : other.rank] = other.downs
        self.ups[: other.slots, :, : other.rank] = other.ups
        self.ranks[: other.slots] = other.ranks
        self.scales[: other.slots] = other.scales

    def put(self, slot: int, segment: int, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
        """down [rank, columns], up [rows of the segment, rank]; the segment is empty."""
        rank, first = len(down), sum(self.heights[:segment])
        self.downs[slot, segment, :rank] = down
        self.ups[slot, first : first + len(up), :rank] = up
        self.scales[slot, segment] = scale
        self.ranks[slot, segment] = rank

    def clear(self, slot: int) -> None:
        self.ranks[slot] = 0
        self.downs[slot] = 0
        self.ups[slot] = 0


def _shares(width: int, rows: int) -> int:
    """In how many shares the columns of x are summed."""
    return 1 if rows > FEW_ROWS else min(MOST_SHARES, cdiv(width, SHARE))


@dataclass(frozen=True, slots=True)
class LowRankAddend:
    """What a step's adapters add to one product: products/finish.py's Addend."""

    table: Table
    rows: AdaptedRows
    x: torch.Tensor
    """[rows, columns], columns contiguous, float32 or bfloat16: what the product multiplies."""
    room: Room

    def added(self) -> tuple[torch.Tensor, torch.Tensor]:
        to = self.room.added(len(self.x), self.table.out_features)
        self._launch(to, adds=False)
        return to, self.rows.slots

    def add_to(self, product: torch.Tensor) -> None:
        self._launch(product, adds=True)

    def _launch(self, to: torch.Tensor, *, adds: bool) -> None:
        x, table, of = self.x, self.table, self.rows
        segments, rows = len(table.heights), len(x)
        shares, tile, inner = _shares(table.width, rows), min(table.rank, MOST_RANK_TILE), self.room.inner()
        share = cdiv(cdiv(table.width, shares), STEP) * STEP
        _shrink[(len(of.block_slots), segments * (table.rank // tile), shares)](
            x, table.downs, table.ranks, inner, of.blocks, of.block_slots, rows, table.width, x.stride(0), share,
            SEGMENTS=segments, RANK=table.rank, R=tile, M=BLOCK_ROWS, K=STEP, num_warps=4, num_stages=4,
        )  # fmt: skip
        _expand[(len(of.block_slots), len(table.tiles))](
            inner, table.ups, table.ranks, table.scales, table.tiles, of.blocks, of.block_slots, to,
            rows, table.out_features, to.stride(0),
            SEGMENTS=segments, RANK=table.rank, R=tile, M=BLOCK_ROWS, N=WIDE, SHARES=shares, ADDS=adds, num_warps=4,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _shrink(
    x, downs, ranks, inner, blocks, block_slots, rows, width, x_stride, share,
    SEGMENTS: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """inner[share, row, segment, r] = one share of the columns of down @ x, for R of a segment's RANK."""
    block, which, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    segment, first = which // (RANK // R), which % (RANK // R) * R
    slot = tl.load(block_slots + block)
    if slot >= 0:
        of_slot = slot.to(tl.int64) * SEGMENTS + segment
        if first < tl.load(ranks + of_slot):
            m, r = tl.arange(0, M), first + tl.arange(0, R)
            row = tl.load(blocks + block * M + m)
            there = row >= 0
            of_x = x + row.to(tl.int64)[:, None] * x_stride
            of_downs = downs + (of_slot * RANK + r)[None, :] * width
            acc = tl.zeros([M, R], tl.float32)
            begin = split * share
            for at in range(begin, tl.minimum(begin + share, width), K):
                k = at + tl.arange(0, K)
                given = tl.load(of_x + k[None, :], mask=there[:, None] & (k < width)[None, :], other=0.0)
                down = tl.load(of_downs + k[:, None], mask=(k < width)[:, None], other=0.0)
                acc = tl.dot(given.to(tl.bfloat16), down, acc)
            at_row = (split * rows + row.to(tl.int64)) * SEGMENTS + segment
            tl.store(inner + (at_row * RANK)[:, None] + r[None, :], acc, mask=there[:, None])


@triton.jit(do_not_specialize=["rows"])
def _expand(
    inner, ups, ranks, scales, tiles, blocks, block_slots, out, rows, height, out_stride,
    SEGMENTS: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    SHARES: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """out[row, n] = scale * up[n] @ the sum of inner's shares, or that much more with ADDS."""
    block, tile = tl.program_id(0), tl.program_id(1)
    slot = tl.load(block_slots + block)
    if slot >= 0:
        segment = tl.load(tiles + 3 * tile)
        n = tl.load(tiles + 3 * tile + 1) + tl.arange(0, N)
        inside = n < tl.load(tiles + 3 * tile + 2)
        of_slot = slot.to(tl.int64) * SEGMENTS + segment
        rank = tl.load(ranks + of_slot)
        if not ADDS or rank > 0:
            row = tl.load(blocks + block * M + tl.arange(0, M))
            there = row >= 0
            of_ups = ups + (slot.to(tl.int64) * height + n)[None, :] * RANK
            acc = tl.zeros([M, N], tl.float32)
            for first in range(0, rank, R):
                r = first + tl.arange(0, R)
                made = tl.zeros([M, R], tl.float32)
                for share in range(SHARES):
                    at_row = (share * rows + row.to(tl.int64)) * SEGMENTS + segment
                    made += tl.load(inner + (at_row * RANK)[:, None] + r[None, :], mask=there[:, None], other=0.0)
                up = tl.load(of_ups + r[:, None], mask=inside[None, :], other=0.0)
                acc = tl.dot(made.to(tl.bfloat16), up, acc)
            acc *= tl.load(scales + of_slot)
            of_out = out + row.to(tl.int64)[:, None] * out_stride + n[None, :]
            good = there[:, None] & inside[None, :]
            if ADDS:
                acc += tl.load(of_out, mask=good, other=0.0).to(tl.float32)
            tl.store(of_out, acc.to(out.dtype.element_ty), mask=good)
