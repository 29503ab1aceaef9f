"""Draws tokens, as SampleBatch defines it, without sorting: whatever set of tokens is kept is the beginning of their
order by logit, and so is what lies before the chosen one. Where it ends is found by searching among the logits' 2^32
values: how much probability, or how many tokens, lie at or above three values between two bounds halves the interval
twice; some twelve passes over a row settle it, out of the cache. Equal logits count by token id.

Sums are float32, the reference's float64: a draw within a few millionths of two tokens' border may fall to the other.
"""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.backend import EMPTY_ROW, UNFIT_ROW
from tokenworks.kernels.cuda.ranking import (
    CHUNK,
    INFINITE,
    LEAST,
    LOWEST,
    id_of_place,
    key_of,
    key_of_place,
    load_chunk,
    logit_of,
    ranked,
    store_best,
)
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2

UNFIT: tl.constexpr = tl.constexpr(UNFIT_ROW)
EMPTY: tl.constexpr = tl.constexpr(EMPTY_ROW)

SEARCH_CHUNK = 8192
"""Logits that a searching program handles at a time: 16 for each of its threads."""


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """logits [R, vocabulary] float32, columns contiguous; out [R] int32, UNFIT_ROW and
    EMPTY_ROW where there is no token; the others [R], as SampleBatch has them."""
    rows, vocabulary = logits.shape
    chunks = cdiv(vocabulary, CHUNK)
    places = torch.empty((rows, chunks), dtype=torch.int64, device=logits.device)
    if not rows:
        return
    _survey[(rows, chunks)](logits, places, vocabulary, logits.stride(0), CHUNK=CHUNK, num_warps=4)
    _choose[(rows,)](
        logits, places, temperature, top_k, top_p, min_p, uniform, out, vocabulary, logits.stride(0), chunks,
        CHUNKS=power_of_2(chunks), CHUNK=SEARCH_CHUNK, num_warps=16,
    )  # fmt: skip


@triton.jit
def _survey(logits, places, vocabulary, stride, CHUNK: tl.constexpr):
    """places [rows, chunks] int64: of the first in rank of each chunk."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    values, ids = load_chunk(logits + row.to(tl.int64) * stride, chunk * CHUNK, vocabulary, CHUNK)
    store_best(ranked(values, ids, vocabulary), places + row.to(tl.int64) * tl.num_programs(1) + chunk, 1)


@triton.jit
def _weight(values, highest, warmth, least, COUNT: tl.constexpr):
    """What a token counts: 1, or its probability as a multiple of the likeliest one's, 0 below `least`."""
    if COUNT:
        weights = tl.full(values.shape, 1.0, tl.float32)
    else:
        weights = tl.exp((values - highest) * warmth)
        weights = tl.where(weights >= least, weights, 0.0)
    return weights


@triton.jit
def _weight_from(logits, vocabulary, key, highest, warmth, least, CHUNK: tl.constexpr):
    """Of all tokens of that key and above."""
    sums = tl.zeros((CHUNK,), tl.float32)
    for start in range(0, vocabulary, CHUNK):
        values, ids = load_chunk(logits, start, vocabulary, CHUNK)
        inside = (ids < vocabulary) & (key_of(values) >= key)
        sums += tl.where(inside, _weight(values, highest, warmth, least, False), 0.0)
    return tl.sum(sums, 0)


@triton.jit
def _search(
    logits, vocabulary, lowest, highest_key, highest, warmth, least, target,
    COUNT: tl.constexpr, STRICT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """(the highest key, `lowest` at least, at and above which the tokens weigh `target`, or STRICTly more; what those
    above it weigh)."""
    low, high = lowest.to(tl.int64), highest_key.to(tl.int64) + 1
    above = 0.0
    while high - low > 1:
        step = tl.maximum((high - low) // 4, 1)
        first = low + step
        second = tl.minimum(first + step, high - 1)
        third = tl.minimum(second + step, high - 1)
        sums1 = tl.zeros((CHUNK,), tl.float32)
        sums2 = tl.zeros((CHUNK,), tl.float32)
        sums3 = tl.zeros((CHUNK,), tl.float32)
        for start in range(0, vocabulary, CHUNK):
            values, ids = load_chunk(logits, start, vocabulary, CHUNK)
            weights = tl.where(ids < vocabulary, _weight(values, highest, warmth, least, COUNT), 0.0)
            keys = key_of(values)
            sums1 += tl.where(keys >= first.to(tl.int32), weights, 0.0)
            sums2 += tl.where(keys >= second.to(tl.int32), weights, 0.0)
            sums3 += tl.where(keys >= third.to(tl.int32), weights, 0.0)
        weight1, weight2, weight3 = tl.sum(sums1, 0), tl.sum(sums2, 0), tl.sum(sums3, 0)
        if STRICT:
            enough1, enough2, enough3 = weight1 > target, weight2 > target, weight3 > target
        else:
            enough1, enough2, enough3 = weight1 >= target, weight2 >= target, weight3 >= target
        low = tl.where(enough3, third, tl.where(enough2, second, tl.where(enough1, first, low)))
        above = tl.where(enough3, above, tl.where(enough2, weight3, tl.where(enough1, weight2, weight1)))
        high = tl.where(enough3, high, tl.where(enough2, third, tl.where(enough1, second, first)))
    return low.to(tl.int32), above


@triton.jit
def _equal_at(logits, vocabulary, key, number, CHUNK: tl.constexpr):
    """Id of the token that is number `number`, from 0, among those of that key; the last of them if there are fewer."""
    before, found, last = 0, -1, -1
    for start in range(0, vocabulary, CHUNK):
        values, ids = load_chunk(logits, start, vocabulary, CHUNK)
        equal = ((key_of(values) == key) & (ids < vocabulary)).to(tl.int32)
        here = tl.sum(equal, 0)
        if here > 0:
            if found < 0 and before + here > number:
                wanted = (equal > 0) & (tl.cumsum(equal, 0) == number - before + 1)
                found = tl.max(tl.where(wanted, ids, -1), 0)
            last = tl.max(tl.where(equal > 0, ids, -1), 0)
        before += here
    return tl.where(found < 0, last, found)


@triton.jit(do_not_specialize_on_alignment=["temperature", "top_k", "top_p", "min_p", "uniform"])
def _choose(
    logits, places, temperature, top_k, top_p, min_p, uniform, out, vocabulary, stride, chunks,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    best = tl.max(tl.load(places + row.to(tl.int64) * chunks + chunk, mask=chunk < chunks, other=LEAST), 0)
    token, heat = id_of_place(best), tl.load(temperature + row)
    if key_of_place(best) >= INFINITE:
        token = UNFIT
    elif key_of_place(best) <= LOWEST:
        token = EMPTY
    elif heat > 0.0:
        logits += row.to(tl.int64) * stride
        first = key_of_place(best)
        highest, warmth = logit_of(first), 1.0 / heat
        k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
        # Kept are all tokens above the key `cut`, and so many of that key; at first all.
        cut, of_cut = tl.minimum(first, LOWEST), vocabulary
        if (k > 0) & (k < vocabulary):
            cut, above = _search(
                logits, vocabulary, cut, first, highest, warmth, 0.0, k.to(tl.float32), True, False, CHUNK
            )
            of_cut = k - above.to(tl.int32)
        if p < 1.0:
            each = _weight(logit_of(cut), highest, warmth, 0.0, False)
            total = _weight_from(logits, vocabulary, cut + 1, highest, warmth, 0.0, CHUNK) + each * of_cut
            next_cut, above = _search(
                logits, vocabulary, cut, first, highest, warmth, 0.0, p * total, False, False, CHUNK
            )
            each = _weight(logit_of(next_cut), highest, warmth, 0.0, False)
            wanted = tl.where(each > 0.0, tl.ceil((p * total - above) / each), 1.0)
            wanted = tl.minimum(tl.maximum(wanted, 1.0), vocabulary * 1.0).to(tl.int32)
            of_cut = tl.where(next_cut == cut, tl.minimum(wanted, of_cut), wanted)
            cut = next_cut
        each = _weight(logit_of(cut), highest, warmth, least, False)
        total = _weight_from(logits, vocabulary, cut + 1, highest, warmth, least, CHUNK) + each * of_cut
        target = tl.minimum(tl.load(uniform + row) * total, total * 0.9999999)  # less than all, whatever rounding does
        key, above = _search(logits, vocabulary, cut, first, highest, warmth, least, target, False, True, CHUNK)
        each = _weight(logit_of(key), highest, warmth, least, False)
        number = tl.where(each > 0.0, tl.floor((target - above) / each), 0.0)
        number = tl.minimum(tl.maximum(number, 0.0), vocabulary * 1.0).to(tl.int32)
        number = tl.where(key == cut, tl.minimum(number, of_cut - 1), number)
        token = _equal_at(logits, vocabulary, key, number, CHUNK)
    tl.store(out + row, token)
