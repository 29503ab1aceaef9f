"""Draws tokens, as SampleBatch defines it, without sorting: whatever set of tokens is kept is the beginning of their
order by logit, and so is what lies before the chosen one. Where it ends is found by searching among the logits' 2^32
values: how much probability, or how many tokens, lie at or above three values between two bounds halves the interval
twice. Equal logits count by token id.

Some dozens of such passes over a whole row would take one multiprocessor longer than a small model takes for all its
layers. So the tokens near the likeliest one are gathered first, by as many programs as a row has chunks, and the search
is among these; only where it leads below them, or there are too many, the whole row is searched.

Sums are float32, the reference's float64: a draw within a few millionths of two tokens' border may fall to the other.
"""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.backend import EMPTY_ROW, UNFIT_ROW
from tokenworks.kernels.cuda.sampling.ranking import (
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

NEAR: tl.constexpr = tl.constexpr(2.0**-14)
"""Tokens of at least so much of the likeliest one's probability are gathered, ..."""
GATHERED = 256
"""... if no chunk of a row has more of them."""


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
    near = torch.empty((2, rows, chunks, GATHERED), dtype=torch.float32, device=logits.device)
    sums = torch.empty((2, rows, chunks), dtype=torch.float32, device=logits.device)
    shape = (rows, vocabulary, logits.stride(0), chunks)
    _survey[(rows, chunks)](logits, places, vocabulary, logits.stride(0), CHUNK=CHUNK, num_warps=4)
    _gather_near[(rows, chunks)](
        logits, places, temperature, near, sums, *shape,
        CHUNKS=power_of_2(chunks), CHUNK=CHUNK, GATHERED=GATHERED, num_warps=8,
    )  # fmt: skip
    _choose[(rows,)](
        logits, places, near, sums, temperature, top_k, top_p, min_p, uniform, out, *shape,
        CHUNKS=power_of_2(chunks), CHUNK=SEARCH_CHUNK, GATHERED=GATHERED, num_warps=16,
    )  # fmt: skip


@triton.jit
def _survey(logits, places, vocabulary, stride, CHUNK: tl.constexpr):
    """places [rows, chunks] int64: of the first in rank of each chunk."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    values, ids = load_chunk(logits + row.to(tl.int64) * stride, chunk * CHUNK, vocabulary, CHUNK)
    store_best(ranked(values, ids, vocabulary), places + row.to(tl.int64) * tl.num_programs(1) + chunk, 1)


@triton.jit
def _first_place(places, row, chunks, CHUNKS: tl.constexpr):
    chunk = tl.arange(0, CHUNKS)
    return tl.max(tl.load(places + row.to(tl.int64) * chunks + chunk, mask=chunk < chunks, other=LEAST), 0)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["temperature"])
def _gather_near(
    logits, places, temperature, near, sums, rows, vocabulary, stride, chunks,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, GATHERED: tl.constexpr,
):  # fmt: skip
    """near [2, rows, chunks, GATHERED]: logits and (as int32) ids of a chunk's likeliest tokens, in order of id, then
    -inf; sums [2, rows, chunks]: how many these are, and what the others weigh."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    heat = tl.load(temperature + row)
    if heat > 0.0:
        highest = logit_of(key_of_place(_first_place(places, row, chunks, CHUNKS)))
        values, ids = load_chunk(logits + row.to(tl.int64) * stride, chunk * CHUNK, vocabulary, CHUNK)
        weights = tl.exp((values - highest) * (1.0 / heat))
        inside = weights >= NEAR
        number = tl.cumsum(inside.to(tl.int32), 0) - 1
        count = tl.sum(inside.to(tl.int32), 0)
        part = row * chunks + chunk
        to = near + part.to(tl.int64) * GATHERED
        to_ids = (near + (rows * chunks + part).to(tl.int64) * GATHERED).to(tl.pointer_type(tl.int32))
        kept = inside & (number < GATHERED)
        tl.store(to + number, values, mask=kept)
        tl.store(to_ids + number, ids, mask=kept)
        place = tl.arange(0, GATHERED)
        tl.store(to + place, float("-inf"), mask=place >= count)
        tl.store(sums + part, count.to(tl.float32))
        tl.store(sums + rows * chunks + part, tl.sum(tl.where(inside, 0.0, weights), 0))


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


@triton.jit
def _draw(
    logits, length, count, others, vocabulary, first, warmth, k, p, least, uniform, CHUNK: tl.constexpr,
):  # fmt: skip
    """The index that is drawn among `length` logits, of which `count` are tokens' and the rest, if any, -inf; the
    vocabulary's other tokens are all less likely, and weigh `others`. Less than 0: it may lie among the others."""
    highest = logit_of(first)
    among = count > 0
    # Kept are all tokens above the key `cut`, and so many of that key; at first all.
    cut, of_cut = tl.minimum(first, LOWEST), length
    if (k > 0) & (k < vocabulary):
        among = k <= count
        cut, above = _search(logits, length, cut, first, highest, warmth, 0.0, k.to(tl.float32), True, False, CHUNK)
        of_cut = k - above.to(tl.int32)
        others = 0.0
    if p < 1.0:
        each = _weight(logit_of(cut), highest, warmth, 0.0, False)
        here = _weight_from(logits, length, cut + 1, highest, warmth, 0.0, CHUNK) + each * of_cut
        wanted = p * (here + others)
        among = among & ((others == 0.0) | (wanted < here))
        next_cut, above = _search(logits, length, cut, first, highest, warmth, 0.0, wanted, False, False, CHUNK)
        each = _weight(logit_of(next_cut), highest, warmth, 0.0, False)
        number = tl.where(each > 0.0, tl.ceil((wanted - above) / each), 1.0)
        number = tl.minimum(tl.maximum(number, 1.0), length * 1.0).to(tl.int32)
        of_cut = tl.where(next_cut == cut, tl.minimum(number, of_cut), number)
        cut = next_cut
        others = 0.0
    if least > 0.0:
        among = among & ((others == 0.0) | (least >= NEAR))
        others = 0.0
    each = _weight(logit_of(cut), highest, warmth, least, False)
    here = _weight_from(logits, length, cut + 1, highest, warmth, least, CHUNK) + each * of_cut
    target = tl.minimum(uniform * (here + others), (here + others) * 0.9999999)  # less than all, whatever rounding does
    among = among & ((others == 0.0) | (target < here))
    key, above = _search(logits, length, cut, first, highest, warmth, least, target, False, True, CHUNK)
    each = _weight(logit_of(key), highest, warmth, least, False)
    before = tl.where(each > 0.0, tl.floor((target - above) / each), 0.0)
    before = tl.minimum(tl.maximum(before, 0.0), length * 1.0).to(tl.int32)
    before = tl.where(key == cut, tl.minimum(before, of_cut - 1), before)
    return tl.where(among, _equal_at(logits, length, key, before, CHUNK), -1)


@triton.jit(
    do_not_specialize=["rows"],
    do_not_specialize_on_alignment=["temperature", "top_k", "top_p", "min_p", "uniform"],
)
def _choose(
    logits, places, near, sums, temperature, top_k, top_p, min_p, uniform, out, rows, vocabulary, stride, chunks,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, GATHERED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    best = _first_place(places, row, chunks, CHUNKS)
    first = key_of_place(best)
    token, heat = id_of_place(best), tl.load(temperature + row)
    if first >= INFINITE:
        token = UNFIT
    elif first <= LOWEST:
        token = EMPTY
    elif heat > 0.0:
        warmth, u = 1.0 / heat, tl.load(uniform + row)
        k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
        chunk = tl.arange(0, CHUNKS)
        part = row * chunks + chunk
        counts = tl.load(sums + part, mask=chunk < chunks, other=0.0)
        others = tl.sum(tl.load(sums + rows * chunks + part, mask=chunk < chunks, other=0.0), 0)
        values = near + row.to(tl.int64) * chunks * GATHERED
        ids = near.to(tl.pointer_type(tl.int32)) + (rows + row).to(tl.int64) * chunks * GATHERED
        length, count = chunks * GATHERED, tl.sum(counts, 0).to(tl.int32)
        token, whole = -1, tl.max(counts, 0) > GATHERED
        while token < 0:  # once, or a second time in the whole row
            if whole:
                values = logits + row.to(tl.int64) * stride
                length, count, others = vocabulary, vocabulary, 0.0 * others
            token = _draw(values, length, count, others, vocabulary, first, warmth, k, p, least, u, CHUNK)
            if whole:
                token = tl.where(token < 0, id_of_place(best), token)  # nothing is left if sums' rounding had it so
            elif token >= 0:
                token = tl.load(ids + token)
            whole = whole | True
    tl.store(out + row, token)
