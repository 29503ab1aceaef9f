"""Attention of some rows of one sequence, and the heads that share a K and V, to what they see: one tile.

A tile's rows are (token, head of the group): K and V are read once for all of them. Softmax runs over blocks of
positions with what has been seen so far rescaled (Milakov & Gimelshein 2018, arXiv 1805.02867). Scores and sums are
float32; products have bfloat16 factors.
"""

import triton
import triton.language as tl

from tokenworks.kernels.cuda.elements.activations import tanh
from tokenworks.kernels.cuda.scratch import come_last

LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Stands for minus infinity, whose difference with itself is a number."""


@triton.jit
def attend_tile(
    q, out, keys, values, sinks, partials, counters, tiles,
    positions, sequences, ends, span_begins, span_ends, tables, meta,
    q_stride, out_stride, key_stride, value_stride, scale, softcap, window, begin, end,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, VALUE: tl.constexpr,
    VALUE_AT: tl.constexpr, BLOCK_TOKENS: tl.constexpr, PAGED: tl.constexpr, CHUNKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, A: tl.constexpr, B: tl.constexpr, V: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Program (tile, heads, share of the positions).

    tiles: int32 [n, 2], first row and number of rows; None: tile i is row i alone. HEADS of a group's GROUP heads run
    together. A head's HEAD columns are cut into A, a power of two, and up to B more (0: none).
    PAGED: keys and values are a cache [blocks, KV_HEADS, BLOCK_TOKENS, ...] and a row sees positions up to `ends`;
    else they are the step's rows, and it sees those from span_begins to span_ends.
    """
    tile, split = tl.program_id(0), tl.program_id(2)
    bunches: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv = tl.program_id(1) // bunches
    bunch = tl.program_id(1) % bunches
    first_row, count = tile, 1
    if tiles is not None:
        first_row = tl.load(tiles + 2 * tile)
        count = tl.load(tiles + 2 * tile + 1)
    m = tl.arange(0, M)
    of_group = bunch * HEADS + m % HEADS
    head = kv * GROUP + of_group
    row = first_row + m // HEADS
    valid = (m // HEADS < count) & (of_group < GROUP)
    if PAGED:
        position = tl.load(positions + row, mask=valid, other=0)
        low = tl.zeros([M], tl.int32) + begin
        if window > 0:
            first = position - position % window if CHUNKED else position - window + 1
            low = tl.maximum(low, first)
        high = tl.load(ends + row, mask=valid, other=0)
        if end > 0:
            high = tl.zeros([M], tl.int32) + end
        table = tables + tl.load(sequences + first_row).to(tl.int64) * tl.load(meta)
    else:
        low = tl.load(span_begins + row, mask=valid, other=0)
        high = tl.load(span_ends + row, mask=valid, other=0)
        if window > 0:
            low, high = tl.maximum(low, row - window + 1), tl.minimum(high, row + window)
        table = tables
    low = tl.where(valid, low, 2147483647)
    high = tl.where(valid, high, 0)
    # Shares are of whole blocks of N positions, counted from 0: so the sums do not depend on what else is in the step.
    lowest = tl.min(low, axis=0) // N * N
    highest = tl.max(high, axis=0)
    share, shares = highest - lowest, 1
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(highest - lowest, N), SPLITS) * N
        shares = tl.maximum(tl.cdiv(highest - lowest, tl.maximum(share, N)), 1)
    if split < shares:
        from_ = lowest + split * share
        to = tl.minimum(from_ + share, highest)
        a, v = tl.arange(0, A), tl.arange(0, V)
        b = A + tl.arange(0, B if B else 16)
        wide_row = row.to(tl.int64)[:, None]
        of_q = q + wide_row * q_stride + head[:, None] * HEAD
        qa = tl.load(of_q + a[None, :], mask=valid[:, None] & (a < HEAD)[None, :], other=0.0).to(tl.bfloat16)
        qb = qa
        if B:
            qb = tl.load(of_q + b[None, :], mask=valid[:, None] & (b < HEAD)[None, :], other=0.0).to(tl.bfloat16)
        most = tl.zeros([M], tl.float32) + LOWEST
        total = tl.zeros([M], tl.float32)
        acc = tl.zeros([M, V], tl.float32)
        for start in range(from_, to, N):
            n = start + tl.arange(0, N)
            there = n < to
            if PAGED:
                block = tl.load(table + n // BLOCK_TOKENS, mask=there, other=-1)
                there = there & (block >= 0)
                slot = (block.to(tl.int64) * KV_HEADS + kv) * BLOCK_TOKENS + n % BLOCK_TOKENS
                of_k, of_v = keys + slot * key_stride, values + slot * value_stride
            else:
                of_k = keys + n.to(tl.int64) * key_stride + kv * HEAD
                of_v = values + n.to(tl.int64) * value_stride + kv * VALUE
            ka = tl.load(of_k[None, :] + a[:, None], mask=there[None, :] & (a < HEAD)[:, None], other=0.0)
            score = tl.dot(qa, ka.to(tl.bfloat16))
            if B:
                kb = tl.load(of_k[None, :] + b[:, None], mask=there[None, :] & (b < HEAD)[:, None], other=0.0)
                score = tl.dot(qb, kb.to(tl.bfloat16), score)
            score *= scale
            if SOFTCAP:
                score = softcap * tanh(score / softcap)
            seen = (n[None, :] >= low[:, None]) & (n[None, :] < high[:, None]) & there[None, :]
            score = tl.where(seen, score, LOWEST)
            higher = tl.maximum(most, tl.max(score, axis=1))
            p = tl.where(seen, tl.exp(score - higher[:, None]), 0.0)
            shrink = tl.exp(most - higher)
            total = total * shrink + tl.sum(p, axis=1)
            vs = tl.load(of_v[:, None] + VALUE_AT + v[None, :], mask=there[:, None] & (v < VALUE)[None, :], other=0.0)
            acc = tl.dot(p.to(tl.bfloat16), vs.to(tl.bfloat16), acc * shrink[:, None])
            most = higher
        last = True
        if SPLITS > 1:  # noqa: SIM102 - one is for the compiler, the other for the kernel
            if shares > 1:
                which = tile * tl.num_programs(1) + tl.program_id(1)
                kept: tl.constexpr = M * (V + 2)
                of_tile = partials + which.to(tl.int64) * (SPLITS * kept)
                at = m[:, None] * V + v[None, :]
                tl.store(of_tile + split * kept + at, acc)
                tl.store(of_tile + split * kept + M * V + m, most)
                tl.store(of_tile + split * kept + M * V + M + m, total)
                last = come_last(counters, which, shares)
                if last:
                    most = tl.zeros([M], tl.float32) + LOWEST
                    total = tl.zeros([M], tl.float32)
                    acc = tl.zeros([M, V], tl.float32)
                    for other in range(shares):
                        of_share = of_tile + other * kept
                        its = tl.load(of_share + M * V + m, cache_modifier=".cg")
                        higher = tl.maximum(most, its)
                        mine, theirs = tl.exp(most - higher), tl.exp(its - higher)
                        total = total * mine + tl.load(of_share + M * V + M + m, cache_modifier=".cg") * theirs
                        acc = acc * mine[:, None] + tl.load(of_share + at, cache_modifier=".cg") * theirs[:, None]
                        most = higher
        if last:
            if sinks is not None:
                sink = tl.load(sinks + head, mask=valid, other=0.0)
                higher = tl.maximum(most, sink)
                shrink = tl.exp(most - higher)
                total = total * shrink + tl.exp(sink - higher)
                acc = acc * shrink[:, None]
            acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
            of_out = out + wide_row * out_stride + head[:, None] * VALUE + v[None, :]
            tl.store(of_out, acc.to(out.dtype.element_ty), mask=valid[:, None] & (v < VALUE)[None, :])
