"""Heads of q, k and v on their way to attention: RMS norm, rotary positions, K and V into the cache, in one launch."""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.elements.activations import cos_sin
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2


@dataclass(frozen=True, slots=True)
class HeadPart:
    """Heads that are treated alike."""

    x: torch.Tensor
    """[rows, heads * head_size]"""
    weight: torch.Tensor | None = None
    """[head_size] of the norm."""
    epsilon: float = 0.0
    normed: bool = False
    turned: bool = False
    norm_first: bool = True

    def of(self, rows: int) -> "HeadPart":
        return replace(self, x=self.x[:rows])


@dataclass(frozen=True, slots=True)
class Rotation:
    """Pairs (i, i + len(frequencies)) of a head are turned by place * frequencies[i], and scaled."""

    frequencies: torch.Tensor
    """float32"""
    scale: float
    axes: torch.Tensor | None
    """int32, for each frequency: the row of `Places.axes` that it is turned by; None: by the position."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a step are: int32, on the device."""

    positions: torch.Tensor
    sequences: torch.Tensor
    tables: torch.Tensor
    """Flat: block of each block_tokens positions of each sequence, -1 for none."""
    meta: torch.Tensor
    """[0]: columns of `tables`."""
    axes: torch.Tensor | None
    """[axes, rows]"""


def place(
    head_size: int,
    places: Places,
    rotation: Rotation | None,
    q: HeadPart | None,
    out: torch.Tensor | None,
    k: HeadPart | None,
    v: HeadPart | None,
    keys: torch.Tensor | None,
    values: torch.Tensor | None,
) -> None:
    """q to `out` [rows, heads * head_size], K and V to a layer's cache [blocks, kv_heads, block_tokens, head_size] at
    their positions; rows of a sequence without a block there are not kept."""
    some = next(part for part in (q, k, v) if part is not None)
    rows = some.x.shape[0]
    if not rows:
        return
    heads = [0 if part is None else part.x.shape[1] // head_size for part in (q, k, v)]
    turned = 0 if rotation is None else rotation.frequencies.shape[0]
    half = power_of_2(max(1, turned))
    rest = head_size - 2 * turned
    rest_block = power_of_2(rest) if rest else 0
    tall = max(1, min(power_of_2(rows), 1024 // power_of_2(2 * half + rest_block)))
    parts = [part or HeadPart(some.x) for part in (q, k, v)]
    axes = rotation.axes if rotation else None
    _place[(cdiv(rows, tall), sum(heads))](
        parts[0].x, parts[1].x, parts[2].x, out, keys, values,
        parts[0].weight, parts[1].weight, parts[2].weight,
        rotation.frequencies if rotation else None, axes, places.axes if axes is not None else None,
        places.positions, places.sequences, places.tables, places.meta,
        rows, *(part.x.stride(0) for part in parts), 0 if out is None else out.stride(0),
        0 if axes is None or places.axes is None else places.axes.stride(0),
        *(part.epsilon for part in parts), 1.0 if rotation is None else rotation.scale,
        HEAD=head_size, TURNED=turned, HALF=half, REST=rest_block, TALL=tall,
        Q_HEADS=heads[0], K_HEADS=heads[1], BLOCK_TOKENS=1 if keys is None else keys.shape[2],
        Q_HOW=_how(q), K_HOW=_how(k), V_HOW=_how(v),
    )  # fmt: skip


def _how(part: HeadPart | None) -> int:
    """For the kernel: 1 normed, 2 turned, 4 normed after it is turned."""
    if part is None:
        return 0
    return part.normed + 2 * part.turned + 4 * (part.normed and part.turned and not part.norm_first)


@triton.jit
def _rms(
    first,
    second,
    rest,
    weight,
    epsilon,
    HEAD: tl.constexpr,
    TURNED: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """A head in its three portions, the last unused where REST is 0, normed."""
    total = tl.sum(first * first, axis=1, keep_dims=True) + tl.sum(second * second, axis=1, keep_dims=True)
    if REST:
        total += tl.sum(rest * rest, axis=1, keep_dims=True)
    by = 1.0 / tl.sqrt(total / HEAD + epsilon)
    first, second, rest = first * by, second * by, rest * by
    if weight is not None:
        i = tl.arange(0, HALF)[None, :]
        first *= tl.load(weight + i, mask=i < TURNED, other=0.0)
        second *= tl.load(weight + TURNED + i, mask=i < TURNED, other=0.0)
        if REST:
            j = 2 * TURNED + tl.arange(0, REST)[None, :]
            rest *= tl.load(weight + j, mask=j < HEAD, other=0.0)
    return first, second, rest


@triton.jit
def _head(
    x, to, weight, epsilon, cos, sin, row, valid, stored,
    HOW: tl.constexpr, HEAD: tl.constexpr, TURNED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One head of some rows. x, to: pointers to it [rows, 1]; its portions are the two sides of the pairs that are
    turned, and the rest."""
    i = tl.arange(0, HALF)[None, :]
    j = 2 * TURNED + tl.arange(0, REST if REST else 1)[None, :]
    pair, other = valid & (i < TURNED), valid & (j < HEAD)
    first = tl.load(x + i, mask=pair, other=0.0).to(tl.float32)
    second = tl.load(x + TURNED + i, mask=pair, other=0.0).to(tl.float32)
    rest = tl.load(x + j, mask=other, other=0.0).to(tl.float32)
    if (HOW & 1) and not (HOW & 4):
        first, second, rest = _rms(first, second, rest, weight, epsilon, HEAD, TURNED, HALF, REST)
    if HOW & 2:
        first, second = first * cos - second * sin, second * cos + first * sin
    if HOW & 4:
        first, second, rest = _rms(first, second, rest, weight, epsilon, HEAD, TURNED, HALF, REST)
    kind = to.dtype.element_ty
    tl.store(to + i, first.to(kind), mask=stored & pair)
    tl.store(to + TURNED + i, second.to(kind), mask=stored & pair)
    if REST:
        tl.store(to + j, rest.to(kind), mask=stored & other)


@triton.jit(do_not_specialize=["rows"])
def _place(
    q, k, v, out, keys, values, q_weight, k_weight, v_weight, frequencies, axes, places,
    positions, sequences, tables, meta,
    rows, q_stride, k_stride, v_stride, out_stride, places_stride, q_epsilon, k_epsilon, v_epsilon, scale,
    HEAD: tl.constexpr, TURNED: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, TALL: tl.constexpr,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    Q_HOW: tl.constexpr, K_HOW: tl.constexpr, V_HOW: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row = tl.program_id(0) * TALL + tl.arange(0, TALL)
    valid = row < rows
    position = tl.load(positions + row, mask=valid, other=0)
    cos = tl.zeros([TALL, HALF], tl.float32)
    sin = tl.zeros([TALL, HALF], tl.float32)
    if TURNED:
        i = tl.arange(0, HALF)[None, :]
        turns = tl.load(frequencies + i, mask=i < TURNED, other=0.0)
        if axes is not None:
            axis = tl.load(axes + i, mask=i < TURNED, other=0)
            of_pair = tl.load(places + axis * places_stride + row[:, None], mask=valid[:, None], other=0)
            angle = of_pair.to(tl.float32) * turns
        else:
            angle = position.to(tl.float32)[:, None] * turns
        cos, sin = cos_sin(angle)
        cos, sin = scale * cos, scale * sin
    wide_row, good = row.to(tl.int64)[:, None], valid[:, None]
    if head < Q_HEADS:
        if out is not None:
            at = head * HEAD
            _head(
                q + wide_row * q_stride + at, out + wide_row * out_stride + at, q_weight, q_epsilon, cos, sin, row,
                good, good, Q_HOW, HEAD, TURNED, HALF, REST,
            )  # fmt: skip
    elif keys is not None:
        sequence = tl.load(sequences + row, mask=valid, other=0)
        columns = tl.load(meta)
        block = tl.load(tables + sequence.to(tl.int64) * columns + position // BLOCK_TOKENS, mask=valid, other=-1)
        kept = (valid & (block >= 0))[:, None]
        if head < Q_HEADS + K_HEADS:
            own = head - Q_HEADS
            slot = (block.to(tl.int64) * K_HEADS + own) * BLOCK_TOKENS + position % BLOCK_TOKENS
            _head(
                k + wide_row * k_stride + own * HEAD, keys + slot[:, None] * HEAD, k_weight, k_epsilon, cos, sin, row,
                good, kept, K_HOW, HEAD, TURNED, HALF, REST,
            )  # fmt: skip
        elif values is not None:
            own = head - Q_HEADS - K_HEADS
            slot = (block.to(tl.int64) * K_HEADS + own) * BLOCK_TOKENS + position % BLOCK_TOKENS
            _head(
                v + wide_row * v_stride + own * HEAD, values + slot[:, None] * HEAD, v_weight, v_epsilon, cos, sin, row,
                good, kept, V_HOW, HEAD, TURNED, HALF, REST,
            )  # fmt: skip
