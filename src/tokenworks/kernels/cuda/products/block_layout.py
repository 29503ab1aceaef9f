"""From the blocks of kernels/formats.py to the words of block_codings.py, or to numbers, on the device, some rows at a
time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from tokenworks.kernels.cuda.loading import Loading, Slab, Source
from tokenworks.kernels.cuda.products.block_codings import (
    E2M1_16,
    E2M1_32,
    E4M3_64,
    E4M3_ROW,
    U4_32,
    U4_MIN_32,
    U8_16,
    U8_32,
    U8_MIN_32,
    U8_ROW,
    Coding,
)
from tokenworks.kernels.formats import E2M1_DOUBLED, E4M3
from tokenworks.kernels.tensor import Description

LEAST_SCALE = 2.0**-100
"""Of a row's largest: smaller ones count as 0. What the kernels make of a scale must not fall out of the exponents."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of weights. columns: of the tensor; the words hold more, zeros, up to whole runs.

    words [rows, padded / coding.codes] int16, scales [rows, padded / coding.weights] int32 or None, row_scales [rows]
    float32.
    """

    coding: Coding
    columns: int
    words: torch.Tensor
    scales: torch.Tensor | None
    row_scales: torch.Tensor
    fp8_inputs: bool = False
    """Of all (Tensor)."""

    def rows(self, first: int, count: int) -> "Packed":
        """Some of them: views."""
        own = slice(first, first + count)
        scales = None if self.scales is None else self.scales[own]
        return replace(self, words=self.words[own], scales=scales, row_scales=self.row_scales[own])

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.row_scales.nbytes + (0 if self.scales is None else self.scales.nbytes)


@dataclass(frozen=True, slots=True)
class _Levels:
    """What the blocks of a format hold: codes [rows, columns] uint8, the others float32 by group of columns."""

    codes: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None = None


def coding_of(what: Description) -> Coding | None:
    """None: of a format that has no coding."""
    return _FORMATS[what.format][0] if what.format in _FORMATS else None


def bytes_of(what: Description) -> int:
    """On the device, of one whose format has a coding."""
    coding, (rows, columns) = _FORMATS[what.format][0], what.shape
    runs = -(-columns // coding.weights)
    return rows * (runs * (2 * coding.run + 4 * coding.scaled) + 4)


def bring_packed(sources: Sequence[Source], loading: Loading) -> Packed | None:
    """The rows of all, one after the other; None where a format has no coding, or not all have the same one."""
    codings = {coding_of(source.what) for source in sources}
    coding = codings.pop()
    if codings or coding is None:
        return None
    out = _room(coding, sum(source.what.shape[0] for source in sources), sources[0].what.shape[1], loading.device)
    at = 0
    for source in sources:
        loading.bring(source, partial(_write, out.rows(at, source.what.shape[0])))
        at += source.what.shape[0]
    return replace(out, fp8_inputs=all(source.what.fp8_inputs for source in sources))


def numbers(slab: Slab) -> torch.Tensor:
    """[rows, columns] what the bytes of any format mean (formats.py), in a type that holds it exactly, as far as
    float32 does."""
    if slab.format in _WIDE:
        values = slab.data.view(_WIDE[slab.format])
    else:
        coding, read = _FORMATS[slab.format]
        levels = read(slab.blocks)
        values = _values(coding, levels.codes)
        if coding.scaled:
            values = values.unflatten(1, (levels.scales.shape[1], -1)) * levels.scales[:, :, None]
            if levels.minima is not None:
                values += levels.minima[:, :, None]
            values = values.flatten(1)
    return values if slab.row_scales is None else values.float() * slab.row_scales[:, None]


_WIDE = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def _values(coding: Coding, codes: torch.Tensor) -> torch.Tensor:
    """float32, before scales."""
    if coding in (E2M1_16, E2M1_32):
        return torch.from_numpy(E2M1_DOUBLED / 2).to(codes.device)[codes.long()]
    if coding in (E4M3_ROW, E4M3_64):
        return codes.contiguous().view(torch.float8_e4m3fn).float()
    return codes.float() - coding.zero


def _room(coding: Coding, rows: int, columns: int, device: torch.device) -> Packed:
    runs = -(-columns // coding.weights)
    return Packed(
        coding,
        columns,
        torch.empty((rows, runs * coding.run), dtype=torch.int16, device=device),
        torch.empty((rows, runs), dtype=torch.int32, device=device) if coding.scaled else None,
        torch.empty(rows, dtype=torch.float32, device=device),
    )


def _write(out: Packed, slab: Slab) -> None:
    coding, read = _FORMATS[slab.format]
    levels, scales = read(slab.blocks), slab.row_scales
    made = _pack(coding, levels, scales if scales is not None else torch.ones_like(out.row_scales[slab.rows]))
    out.words[slab.rows].copy_(made.words)
    out.row_scales[slab.rows].copy_(made.row_scales)
    if out.scales is not None and made.scales is not None:
        out.scales[slab.rows].copy_(made.scales)


def _pack(coding: Coding, levels: _Levels, row_scales: torch.Tensor) -> Packed:
    codes = levels.codes
    columns = codes.shape[1]
    if coding in (E2M1_16, E2M1_32):
        codes, scales, exponents = _e5m3(codes, levels.scales)
        row_scales = torch.ldexp(row_scales, exponents)
    elif coding.scaled:
        codes, scales, exponents = _halves(coding, codes, levels.scales, levels.minima)
        row_scales = torch.ldexp(row_scales, exponents + (2 if coding is E4M3_64 else 15))
    else:
        scales, row_scales = None, row_scales * (1.0 if coding is E4M3_ROW else 2.0**15)
    padded = -(-columns // coding.weights) * coding.weights
    codes = torch.nn.functional.pad(codes, (0, padded - columns), value=coding.zero)
    runs = codes.view(len(codes), -1, coding.codes, coding.run).to(torch.int32)
    place = _place_e2m1 if coding in (E2M1_16, E2M1_32) else _place
    words = torch.zeros_like(runs[:, :, 0])
    for j in range(coding.codes):
        words |= place(runs[:, :, j], coding.codes, j)
    words = torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16)
    return Packed(coding, columns, words.view(len(codes), -1), scales, row_scales)


def _place(codes: torch.Tensor, of: int, j: int) -> torch.Tensor:
    return codes << 16 // of * j


def _place_e2m1(codes: torch.Tensor, of: int, j: int) -> torch.Tensor:
    sign, rest = codes >> 3, codes & 7
    if j < 3:
        return (sign << 15 | rest << 6) >> 3 * j
    return sign << 14 | rest >> 2 << 13 | (rest & 3) << 10


def _e5m3(codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales with four significant bits, not negative: four E5M3 to a word, and the power of two that they lack, by
    row. Where a scale is 0, or less than 2^-31 of its row's largest, codes become 0."""
    fractions, exponents = torch.frexp(scales)  # fraction in [1/2, 1)
    highest = torch.where(scales > 0, exponents, -1000).amax(1)
    exponents = exponents - highest[:, None] + 31
    dead = (scales == 0) | (exponents < 0)
    bits = (exponents << 3) + (fractions * 16).to(torch.int32) - 8
    bits = torch.where(dead, 0, bits)
    group = codes.shape[1] // scales.shape[1]
    codes = torch.where(dead.repeat_interleave(group, 1), 0, codes)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 4)).view(len(bits), -1, 4)
    words = _signed(bits[:, :, 0] | bits[:, :, 1] << 8 | bits[:, :, 2] << 16, bits[:, :, 3], 24)
    # Code 0 has the exponent field 223, a weight's bits are worth 2^-126: 2^(223 - 127 - 126) = 2^-30.
    lack = torch.where(highest > -1000, highest - 1 - 31 + 30, 0)
    return codes, words, lack


def _halves(
    coding: Coding, codes: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """bfloat16 scales, two to a word, or each alone or with its minimum, of a row's power of two; and that power."""
    exponents = torch.frexp(scales.abs().amax(1))[1]
    scales = torch.ldexp(scales, -exponents[:, None])
    dead = scales.abs() < LEAST_SCALE
    low = torch.where(dead, 2.0**-99, scales).to(torch.bfloat16) * 2.0**118
    group = codes.shape[1] // scales.shape[1]
    codes = torch.where(dead.repeat_interleave(group, 1), coding.zero, codes)
    if coding is E4M3_64:
        high = torch.zeros_like(low)
    elif minima is not None:
        high = torch.ldexp(minima, -15 - exponents[:, None]).to(torch.bfloat16)
    else:
        low = torch.nn.functional.pad(low, (0, low.shape[1] % 2), value=1.0)
        low, high = low[:, ::2], low[:, 1::2]
    return codes, _signed(_bits(low), _bits(high), 16), exponents


def _bits(halves: torch.Tensor) -> torch.Tensor:
    return halves.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF


def _signed(low: torch.Tensor, high: torch.Tensor, shift: int) -> torch.Tensor:
    """low | high << shift, of 32 bits."""
    both = low.to(torch.int64) | high.to(torch.int64) << shift
    return torch.where(both >= 1 << 31, both - (1 << 32), both).to(torch.int32).contiguous()


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at byte `at` of each block [rows, blocks, bytes]: [rows, blocks]."""
    return blocks[:, :, at : at + 2].contiguous().view(torch.float16)[:, :, 0].float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _rows(codes: torch.Tensor) -> torch.Tensor:
    return codes.reshape(len(codes), -1)


def _nvfp4(blocks: torch.Tensor) -> _Levels:
    table = torch.from_numpy(np.nan_to_num(E4M3)).to(blocks.device)
    table[255] = 480  # as formats.py has it
    table[128:255] = table[:127]
    codes = _nibbles(blocks[:, :, 4:].reshape(*blocks.shape[:2], 4, 8))
    return _Levels(_rows(codes), _rows(table[blocks[:, :, :4].to(torch.int64)]))


def _mxfp4(blocks: torch.Tensor) -> _Levels:
    scales = torch.ldexp(torch.ones_like(blocks[:, :, 0], dtype=torch.float32), blocks[:, :, 0].to(torch.int32) - 127)
    return _Levels(_rows(_nibbles(blocks[:, :, 1:])), scales)


def _q4_0(blocks: torch.Tensor) -> _Levels:
    return _Levels(_rows(_nibbles(blocks[:, :, 2:])), _half(blocks, 0))


def _q4_1(blocks: torch.Tensor) -> _Levels:
    return _Levels(_rows(_nibbles(blocks[:, :, 4:])), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> _Levels:
    return _Levels(_rows(blocks[:, :, 2:]) ^ 128, _half(blocks, 0))


def _i8(blocks: torch.Tensor) -> _Levels:
    return _Levels(_rows(blocks) ^ 128, torch.empty(0))


def _f8_e4m3(blocks: torch.Tensor) -> _Levels:
    return _Levels(_rows(blocks), torch.empty(0))


def _f8_64(blocks: torch.Tensor) -> _Levels:
    return _Levels(_rows(blocks[:, :, 4:]), blocks[:, :, :4].contiguous().view(torch.float32)[:, :, 0])


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """[..., 4] bytes to [..., 32]: bit e of the little-endian word, as 0 or 16."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & 1).flatten(-2) << 4


def _q5_0(blocks: torch.Tensor) -> _Levels:
    codes = _nibbles(blocks[:, :, 6:]) | _fifth_bits(blocks[:, :, 2:6])
    return _Levels(_rows(codes + (128 - 16)), _half(blocks, 0))


def _q5_1(blocks: torch.Tensor) -> _Levels:
    codes = _nibbles(blocks[:, :, 8:]) | _fifth_bits(blocks[:, :, 4:8])
    return _Levels(_rows(codes), _half(blocks, 0), _half(blocks, 2))


def _k_scales(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of Q4_K or Q5_K: scale and minimum of each group of 32, as formats.py has them."""
    first, second, third = blocks[:, :, 4:8], blocks[:, :, 8:12], blocks[:, :, 12:16]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), dim=2)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), dim=2)
    return _rows(_half(blocks, 0)[:, :, None] * scales), _rows(-_half(blocks, 2)[:, :, None] * minima)


def _q4_k(blocks: torch.Tensor) -> _Levels:
    codes = _nibbles(blocks[:, :, 16:].unflatten(2, (4, 32)))
    return _Levels(_rows(codes), *_k_scales(blocks))


def _q5_k(blocks: torch.Tensor) -> _Levels:
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    high = blocks[:, :, None, 16:48] >> shifts & 1
    codes = _nibbles(blocks[:, :, 48:].unflatten(2, (4, 32))).flatten(2).unflatten(2, (8, 32)) | high << 4
    return _Levels(_rows(codes), *_k_scales(blocks))


def _q6_k(blocks: torch.Tensor) -> _Levels:
    low = _nibbles(blocks[:, :, :128].unflatten(2, (2, 64))).unflatten(3, (4, 32))
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    high = blocks[:, :, 128:192].unflatten(2, (2, 1, 32)) >> shifts & 3
    scales = blocks[:, :, 192:208].view(torch.int8) * _half(blocks, 208)[:, :, None]
    return _Levels(_rows((low | high << 4) + (128 - 32)), _rows(scales))


_FORMATS: dict[str, tuple[Coding, Callable[[torch.Tensor], _Levels]]] = {
    "NVFP4": (E2M1_16, _nvfp4),
    "MXFP4": (E2M1_32, _mxfp4),
    "I8": (U8_ROW, _i8),
    "F8_E4M3": (E4M3_ROW, _f8_e4m3),
    "F8_64": (E4M3_64, _f8_64),
    "Q8_0": (U8_32, _q8_0),
    "Q4_0": (U4_32, _q4_0),
    "Q4_1": (U4_MIN_32, _q4_1),
    "Q5_0": (U8_32, _q5_0),
    "Q5_1": (U8_MIN_32, _q5_1),
    "Q4_K": (U4_MIN_32, _q4_k),
    "Q5_K": (U8_MIN_32, _q5_k),
    "Q6_K": (U8_16, _q6_k),
}
