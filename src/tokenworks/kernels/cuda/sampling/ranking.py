"""Logits as whole numbers that sort as sampling ranks tokens: higher logits first, of equal ones the lower token id."""

import triton
import triton.language as tl

CHUNK = 4096
"""Logits that one program of a survey reads."""

LOWEST: tl.constexpr = tl.constexpr(0x807FFFFF - (1 << 32))
"""The key of -inf."""

INFINITE: tl.constexpr = tl.constexpr(0x7F800000)
"""The key of infinity: NaN's is higher."""

LEAST: tl.constexpr = tl.constexpr(-(1 << 63))
"""Behind all places."""


@triton.jit
def key_of(logits):
    """float32 to int32 in the same order; -0 is 0, and NaN comes first."""
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    return tl.where(logits != logits, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def logit_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def place_of(logits, ids):
    """int64, all different: the greatest is the first in rank."""
    return (key_of(logits).to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def key_of_place(place):
    return (place >> 32).to(tl.int32)


@triton.jit
def id_of_place(place):
    return 0x7FFFFFFF - (place & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def load_chunk(logits, start, vocabulary, CHUNK: tl.constexpr):
    """(CHUNK logits of a row from `start` on, their ids; behind the last: -inf)."""
    ids = start + tl.arange(0, CHUNK)
    return tl.load(logits + ids, mask=ids < vocabulary, other=float("-inf")), ids


@triton.jit
def ranked(values, ids, vocabulary):
    """Places of a chunk's logits; LEAST for what lies behind the last."""
    return tl.where(ids < vocabulary, place_of(values, ids), LEAST)


@triton.jit
def store_best(places, at, count):
    """Writes the `count` greatest of `places` to `at`, in order."""
    for i in range(count):
        best = tl.max(places, 0)
        tl.store(at + i, best)
        places = tl.where(places == best, LEAST, places)
