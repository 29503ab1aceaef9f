"""Changes to rows of logits before tokens are drawn (RowChange), on the device."""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from tokenworks.kernels.backend import RowChange
from tokenworks.kernels.cuda.sizes import cdiv
from tokenworks.kernels.cuda.transfer import send

ENTRIES = 256
CHUNK = 4096


def change_rows(logits: torch.Tensor, changes: Sequence[RowChange]) -> None:
    """logits [R, vocabulary] float32, columns contiguous."""
    count = sum(len(change.ids) for change in changes)
    if count:
        rows = np.repeat(np.array([change.row for change in changes], np.int32), [len(each.ids) for each in changes])
        numbers = [
            rows,
            np.concatenate([change.ids for change in changes]),
            np.concatenate([change.penalties for change in changes]).view(np.int32),
            np.concatenate([change.offsets for change in changes]).view(np.int32),
        ]
        given = send(np.stack(numbers), logits.device)
        floats = given.view(torch.float32)
        _offset[(cdiv(count, ENTRIES),)](
            logits, given[0], given[1], floats[2], floats[3], count, logits.stride(0), BLOCK=ENTRIES
        )
    masked = [change for change in changes if change.allowed is not None]
    if masked:
        words = (logits.shape[1] + 31) // 32
        bits = np.zeros((len(masked), 1 + words), np.int32)
        for to, change in zip(bits, masked, strict=True):
            assert change.allowed is not None
            to[0] = change.row
            to[1 : 1 + len(change.allowed)] = change.allowed
        _forbid[(len(masked), cdiv(logits.shape[1], CHUNK))](
            logits, send(bits, logits.device), logits.shape[1], logits.stride(0), 1 + words, CHUNK=CHUNK
        )


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["ids", "penalties", "offsets"])
def _offset(logits, rows, ids, penalties, offsets, count, stride, BLOCK: tl.constexpr):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < count
    at = tl.load(rows + entry, mask=inside, other=0).to(tl.int64) * stride + tl.load(ids + entry, mask=inside, other=0)
    value = tl.load(logits + at, mask=inside, other=0.0)
    penalty = tl.load(penalties + entry, mask=inside, other=1.0)
    value = tl.where(value > 0.0, value / penalty, value * penalty)
    tl.store(logits + at, value + tl.load(offsets + entry, mask=inside, other=0.0), mask=inside)


@triton.jit
def _forbid(logits, bits, vocabulary, stride, words, CHUNK: tl.constexpr):
    """bits: [rows that are masked, 1 + words], the first the row's number."""
    bits += tl.program_id(0) * words
    row = tl.load(bits)
    token = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = token < vocabulary
    word = tl.load(bits + 1 + token // 32, mask=inside, other=0)
    forbidden = ((word >> (token % 32)) & 1) == 0
    tl.store(logits + row.to(tl.int64) * stride + token, float("-inf"), mask=inside & forbidden)
