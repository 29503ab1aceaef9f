"""Log-probabilities of tokens, their ranks, and the likeliest tokens, as Executable.logprobs defines them."""

import torch
import triton
import triton.language as tl

from tokenworks.kernels.cuda.sampling.ranking import (
    CHUNK,
    LEAST,
    id_of_place,
    key_of_place,
    load_chunk,
    logit_of,
    place_of,
    ranked,
    store_best,
)
from tokenworks.kernels.cuda.sizes import cdiv, power_of_2


def logprobs(
    logits: torch.Tensor,
    chosen: torch.Tensor,
    values: torch.Tensor,
    ranks: torch.Tensor,
    top_ids: torch.Tensor,
    top_values: torch.Tensor,
) -> None:
    """logits [R, vocabulary] float32, columns contiguous; chosen [R] int32, less than 0 where no token could be drawn:
    what is written for such a row means nothing. Written: values [R] float32, ranks [R] int32, top_ids [R, top] int32
    and top_values [R, top] float32, contiguous; top <= vocabulary."""
    rows, vocabulary = logits.shape
    top, chunks = top_ids.shape[1], cdiv(vocabulary, CHUNK)
    if not rows:
        return
    sums = torch.empty((3, rows, chunks), dtype=torch.float32, device=logits.device)
    places = torch.empty((rows, chunks, top), dtype=torch.int64, device=logits.device)
    _measure[(rows, chunks)](
        logits, chosen, sums, places, rows, vocabulary, logits.stride(0), top, CHUNK=CHUNK, num_warps=4
    )
    _finish[(rows,)](
        logits, chosen, sums, places, values, ranks, top_ids, top_values, rows, logits.stride(0), top, chunks,
        CHUNKS=power_of_2(chunks), PLACES=power_of_2(max(1, chunks * top)), num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "top"])
def _measure(logits, chosen, sums, places, rows, vocabulary, stride, top, CHUNK: tl.constexpr):
    """Of each chunk: its highest logit, the sum of exp(logit - highest), how many tokens rank before the chosen one;
    and its first places in rank."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    chunks = tl.num_programs(1)
    logits += row.to(tl.int64) * stride
    values, ids = load_chunk(logits, chunk * CHUNK, vocabulary, CHUNK)
    highest = tl.max(values, 0)
    offset = tl.where(highest == float("-inf"), 0.0, highest)
    at = sums + row * chunks + chunk
    tl.store(at, highest)
    tl.store(at + rows * chunks, tl.sum(tl.exp(values - offset), 0))
    token = tl.maximum(tl.load(chosen + row), 0)
    order = ranked(values, ids, vocabulary)
    before = order > place_of(tl.load(logits + token), token)
    tl.store(at + 2 * rows * chunks, tl.sum(before.to(tl.float32), 0))
    store_best(order, places + (row * chunks + chunk).to(tl.int64) * top, tl.minimum(top, CHUNK))
    for i in range(CHUNK, top):  # more are wanted than a chunk has
        tl.store(places + (row * chunks + chunk).to(tl.int64) * top + i, LEAST)


@triton.jit(do_not_specialize=["rows", "top"])
def _finish(
    logits, chosen, sums, places, values, ranks, top_ids, top_values, rows, stride, top, chunks,
    CHUNKS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    chunk = tl.arange(0, CHUNKS)
    at = sums + row * chunks + chunk
    of_chunk = tl.load(at, mask=chunk < chunks, other=float("-inf"))
    exponentials = tl.load(at + rows * chunks, mask=chunk < chunks, other=0.0)
    before = tl.load(at + 2 * rows * chunks, mask=chunk < chunks, other=0.0)
    highest = tl.max(of_chunk, 0)
    whole = highest + tl.log(tl.sum(exponentials * tl.exp(of_chunk - highest), 0))
    token = tl.maximum(tl.load(chosen + row), 0)
    tl.store(values + row, tl.load(logits + row.to(tl.int64) * stride + token) - whole)
    tl.store(ranks + row, tl.sum(before, 0).to(tl.int32) + 1)
    place = tl.arange(0, PLACES)
    order = tl.load(places + row.to(tl.int64) * chunks * top + place, mask=place < chunks * top, other=LEAST)
    for i in range(top):
        best = tl.max(order, 0)
        tl.store(top_ids + row * top + i, id_of_place(best))
        tl.store(top_values + row * top + i, logit_of(key_of_place(best)) - whole)
        order = tl.where(order == best, LEAST, order)
