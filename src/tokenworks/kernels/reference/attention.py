"""Rotary positions, attention, and the cache's rounding."""

import numpy as np

from tokenworks.kernels.formats import bfloat16_bits
from tokenworks.kernels.program import Attend, Keep, Rope
from tokenworks.kernels.reference.step import Float64, Step, log_sum_exp, sequences

FP8_MOST = 448.0
BFLOAT_MOST = 255 * 2.0**120

LEAST_SCALE = 2.0**-24
"""Heads whose codes would be worth no more than this are written as zeros."""


def rope(step: Step, op: Rope) -> Float64:
    x = step.load(op.x)
    heads = x.reshape(len(x), op.x.width // op.head_size, op.head_size)
    first, second = np.split(heads[..., : op.turned], 2, axis=2)
    places = step.batch_of(len(x)).positions[:, None]
    if op.axes and step.batch.axes is not None:
        places = step.batch.axes[list(op.axes)].T
    angles = places[:, None, :].astype(np.float64) * step.weight(op.inverse_frequencies)
    cos, sin = op.scale * np.cos(angles), op.scale * np.sin(angles)
    turned = (first * cos - second * sin, second * cos + first * sin)
    rotated = np.concatenate([*turned, heads[..., op.turned :]], axis=2)
    return np.asarray(rotated.reshape(x.shape), np.float64)


def attend(step: Step, op: Attend) -> Float64:
    q = step.load(op.q)
    tokens, batch = len(q), step.batch_of(len(q))
    sinks = None if op.sinks is None else step.weight(op.sinks)
    q = q.reshape(tokens, op.heads, op.head_size)
    coded = op.cache_layer is not None and step.cache_dtype == "int8"
    # Of a latent layer the turned columns and the latent apart; its V is the latent of K, rotated.
    cut = [op.head_size - op.latent] if op.latent else []
    if coded:
        q = np.concatenate([in_bytes(rotated(part)) / _run(part) for part in np.split(q, cut, axis=2)], axis=2)
    k = v = np.empty((0, 0, 0))
    if op.k is not None and op.v is not None:
        k = step.load(op.k).reshape(tokens, op.kv_heads, op.head_size)
        v = step.load(op.v).reshape(tokens, op.kv_heads, op.value_size)
        if coded:
            k = np.concatenate([in_bytes(rotated(part)) for part in np.split(k, cut, axis=2)], axis=2)
            v = k[:, :, -op.latent :] if op.latent else in_bytes(v)
    number, count = op.portion
    shape = (tokens, op.heads, op.value_size)
    out = step.load(op.output).reshape(shape) if number else np.zeros(shape)
    for s, (start, stop) in enumerate(sequences(batch, op.windows)):
        if op.cache_layer is None:
            rows = stop - start
            for row in range(start + rows * number // count, start + rows * (number + 1) // count):
                reach = op.window or stop - start
                near = slice(max(start, row - reach + 1), min(stop, row + reach))
                out[row] = _attend_one(op, q[row], k[near], v[near], sinks)
            continue
        keys, values = step.caches[op.cache_layer]
        block_tokens = keys.shape[1]
        table = batch.block_tables[s]
        if op.k is not None:
            _write(step, op.cache_layer, s, k, v)
        for row in range(start, stop):
            position = int(batch.positions[row])
            first = op.begin
            if op.window:
                first = max(first, position - position % op.window if op.chunked else position - op.window + 1)
            end = position + 1 if batch.ends is None else int(batch.ends[row])
            seen = np.arange(first, op.end or end)
            where = (table[seen // block_tokens], seen % block_tokens)
            seen_k, seen_v = keys[where].astype(np.float64), values[where].astype(np.float64)
            out[row] = _attend_one(op, q[row], seen_k, seen_v, sinks)
    if coded and op.latent:
        out = rotated(out) / _run(out)
    return np.asarray(out.reshape(tokens, op.output.width), np.float64)


def _run(x: Float64) -> int:
    """Of how many elements each of `rotated` is."""
    size = int(x.shape[-1])
    return size & -size


def keep(step: Step, op: Keep) -> None:
    shape = (len(step.batch.tokens), *step.caches[op.cache_layer][0].shape[2:])
    k, v = step.load(op.k).reshape(shape), step.load(op.v).reshape(shape)
    if step.cache_dtype == "int8":
        k, v = in_bytes(rotated(k)), in_bytes(v)
    for s in range(len(step.batch.row_starts) - 1):
        _write(step, op.cache_layer, s, k, v)


def _write(step: Step, layer: int, sequence: int, k: Float64, v: Float64) -> None:
    """A sequence's rows of K and V, which are of all rows, to their positions."""
    keys, values = step.caches[layer]
    start, stop = sequences(step.batch)[sequence]
    blocks, places = np.divmod(step.batch.positions[start:stop], keys.shape[1])
    where = (step.batch.block_tables[sequence][blocks], places)
    rounding = {"bfloat16": in_bfloats, "fp8": in_fp8}.get(step.cache_dtype, np.asarray)
    keys[where], values[where] = rounding(k[start:stop]), rounding(v[start:stop])


def rotated(x: Float64) -> Float64:
    """The Walsh-Hadamard transform, not normalised, of each run of 2^n elements of x [..., head_size], n as large as
    divides the head: q·k grows by 2^n. In float32, as it decides how codes are rounded."""
    head_size = x.shape[-1]
    out, h = x.astype(np.float32), 1
    while h < head_size & -head_size:
        first, second = np.moveaxis(out.reshape(*x.shape[:-1], head_size // (2 * h), 2, h), -2, 0)
        out, h = np.stack([first + second, first - second], axis=-2).reshape(x.shape), 2 * h
    return out.astype(np.float64)


def in_bfloats(x: Float64) -> Float64:
    """Rounded to bfloat16, ties to even, and no further than its largest number."""
    rounded = (bfloat16_bits(x.astype(np.float32)).astype(np.uint32) << 16).view(np.float32)
    return np.clip(rounded.astype(np.float64), -BFLOAT_MOST, BFLOAT_MOST)


def in_fp8(x: Float64) -> Float64:
    """Rounded to E4M3, ties to even, and no further than its largest number."""
    size = np.minimum(np.abs(x.astype(np.float32)), FP8_MOST).astype(np.float64)
    step = np.exp2(np.floor(np.log2(np.maximum(size, 2.0**-6))) - 3)  # below 2^-6 numbers are as far apart as there
    return np.asarray(np.copysign(np.minimum(np.rint(size / step) * step, FP8_MOST), x), np.float64)


def in_bytes(x: Float64) -> Float64:
    """x [..., head_size] with each head rounded to codes -127..127 times a scale."""
    values = x.astype(np.float32)
    largest = np.abs(values).max(axis=-1, keepdims=True)
    scale = largest / np.float32(127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=scale > LEAST_SCALE)
    return np.asarray(np.rint(values * inverse).astype(np.float64) * scale, np.float64)


def _attend_one(op: Attend, q: Float64, k: Float64, v: Float64, sinks: Float64 | None) -> Float64:
    """One token's q [heads, head_size] over the n positions it sees: k and v [n, kv_heads, head_size]."""
    shared = op.heads // op.kv_heads
    scores = op.scale * np.einsum("hd,nhd->hn", q, k.repeat(shared, axis=1))
    if op.softcap:
        scores = op.softcap * np.tanh(scores / op.softcap)
    whole = scores if sinks is None else np.concatenate([scores, sinks[:, None]], axis=1)
    weights = np.exp(scores - log_sum_exp(whole))
    return np.asarray(np.einsum("hn,nhd->hd", weights, v.repeat(shared, axis=1)), np.float64)
