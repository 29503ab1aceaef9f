"""Launches of attention: which tiles a step's rows make, and in how many shares their positions are read.

Rows of sequences that bring a few make tiles of their own, with the positions they see cut into shares, so that one
long sequence fills the chip; rows of prompts go together in tiles that fill the tensor cores.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tokenworks.kernels.backend import Int32
from tokenworks.kernels.cuda.attention.tile import attend_tile
from tokenworks.kernels.cuda.device import shared_bytes
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.cuda.sizes import PROGRAMS, cdiv, power_of_2
from tokenworks.kernels.program import Attend

FEW_ROWS = 4
"""A sequence with no more rows in a step has a tile for each."""
TILE_ROWS = ((128, 128), (256, 64), (1 << 30, 32))
"""(the most columns of V, rows of a tile)"""
LEAST_TILE_ROWS = 16
"""What the tensor cores take."""
MOST_SPLITS = 64
SHARE_POSITIONS = 128
"""A share is of more, if there are so many at all."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What an Attend instruction fixes."""

    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    value_at: int
    """Where V begins in a row of what `values` is."""

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def tile_rows(self) -> int:
        """Of a prompt's tile: tokens times heads; fewer where the sums of values would not fit the registers."""
        return next(rows for most, rows in TILE_ROWS if self.value_size <= most)

    @property
    def together(self) -> int:
        """Heads of a group in one tile."""
        return min(self.group, self.tile_rows)

    @property
    def programs(self) -> int:
        """Of one tile."""
        return self.kv_heads * cdiv(self.group, self.together)

    @property
    def tile_tokens(self) -> int:
        """Rows of a prompt in one tile."""
        return max(1, self.tile_rows // self.together)


@dataclass(frozen=True, slots=True)
class Seen:
    """What tells each row's neighbours, for one kind of rows; int32, on the device."""

    positions: torch.Tensor
    sequences: torch.Tensor
    ends: torch.Tensor
    span_begins: torch.Tensor | None
    span_ends: torch.Tensor | None
    tables: torch.Tensor
    meta: torch.Tensor


def tiles_of(row_starts: Int32, tile_tokens: int, few_rows: int = FEW_ROWS) -> tuple[Int32, Int32]:
    """(first row, rows) of tiles of a row each, and of tiles of up to `tile_tokens` rows, those with most first."""
    starts, counts = row_starts[:-1], np.diff(row_starts)
    short = counts <= few_rows
    single = [
        row for s, n in zip(starts[short].tolist(), counts[short].tolist(), strict=True) for row in range(s, s + n)
    ]
    large = [
        (at, min(tile_tokens, start + count - at))
        for start, count in zip(starts[~short].tolist(), counts[~short].tolist(), strict=True)
        for at in range(start, start + count, tile_tokens)
    ]
    singles = np.array([(row, 1) for row in single], np.int32).reshape(-1, 2)
    # A prompt's last tokens see most: their tiles begin first, so that none of them ends long after the others.
    return singles, np.array(large[::-1], np.int32).reshape(-1, 2)


def splits_for(tiles: int, programs: int, positions: int) -> int:
    """In how many shares `tiles` tiles of `programs` programs each read their positions, `positions` at most: a power
    of two."""
    splits = 1
    while splits < MOST_SPLITS and tiles * programs * splits < PROGRAMS and splits * SHARE_POSITIONS < positions:
        splits *= 2
    return splits


def _padded_rows(shape: Shape, tile_tokens: int) -> int:
    """Of a tile, for the tensor cores."""
    return max(LEAST_TILE_ROWS, power_of_2(shape.together * tile_tokens))


def _share_numbers(shape: Shape, tile_tokens: int) -> int:
    """That a program leaves of its share: of each row the sum of values, the highest score, the sum of weights."""
    return _padded_rows(shape, tile_tokens) * (max(16, power_of_2(shape.value_size)) + 2)


def reserve(shape: Shape, scratch: Scratch) -> None:
    """Room for the shares of any step: there are fewer programs than twice PROGRAMS where there are shares."""
    scratch.reserve(partials=2 * PROGRAMS * _share_numbers(shape, 1), counters=PROGRAMS)


def attend(
    shape: Shape,
    seen: Seen,
    q: torch.Tensor,
    out: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor | None,
    tiles: torch.Tensor | None,
    scratch: Scratch,
    op: Attend,
    *,
    tile_tokens: int,
    splits: int,
) -> None:
    """q [rows, heads * head_size] to out [rows, heads * value_size]. `tiles` None: each row is one."""
    paged = op.cache_layer is not None
    count = (q if tiles is None else tiles).shape[0]
    if not count:
        return
    m = _padded_rows(shape, tile_tokens)
    a = max(16, 1 << (shape.head_size.bit_length() - 1))
    b = 0 if a >= shape.head_size else max(16, power_of_2(shape.head_size - a))
    v = max(16, power_of_2(shape.value_size))
    n = 64 if max(a, v) < 256 else 32
    # Two steps' K beside q: of latent heads too much for the smallest chips.
    stages = 2 if (m + 2 * n) * (a + b) * max(2, keys.element_size()) <= shared_bytes(q.device) else 1
    programs = shape.programs
    partials = counters = None
    if splits > 1:
        partials = scratch.partials(count * programs * splits * _share_numbers(shape, tile_tokens))
        counters = scratch.counters(count * programs)
    attend_tile[(count, programs, splits)](
        q, out, keys, values, sinks, partials, counters, tiles,
        seen.positions, seen.sequences, seen.ends, seen.span_begins, seen.span_ends, seen.tables, seen.meta,
        q.stride(0), out.stride(0), keys.stride(-2), values.stride(-2),
        op.scale, op.softcap, op.window, op.begin, op.end,
        KV_HEADS=shape.kv_heads, GROUP=shape.group, HEADS=shape.together, HEAD=shape.head_size, VALUE=shape.value_size,
        VALUE_AT=shape.value_at, BLOCK_TOKENS=keys.shape[2] if paged else 1, PAGED=paged, CHUNKED=op.chunked,
        SOFTCAP=op.softcap != 0.0, M=m, N=n, A=a, B=b, V=v, SPLITS=splits, num_warps=4 if m * v <= 4096 else 8,
        num_stages=stages,
    )  # fmt: skip
