"""The number formats that weights are rounded to: their grids, how a scale is chosen, how a number becomes a code.

A weight [out_features, in_features] becomes codes of one grid times scales: E2M1 with a scale per 16 columns in E4M3
under one float32 per tensor (NVFP4), E2M1 with a power of two per 32 columns (MXFP4, OCP Microscaling Formats 1.0), or
int8 and E4M3 with a float32 per row. NVFP4's float32 is chosen as a power of two: then every way to multiply the three
factors, in any order, reciprocal or not, in float32 or bfloat16, gives the same bits, and no reader's result differs
from another's. A code's scale is found by trying several near the one that maps the block's largest number to the
grid's: clipping it, or leaving room above it (mapping it to 4 instead of 6) often fits the other numbers better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.formats import E2M1_DOUBLED, E4M3

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
T = TypeVar("T", bound=np.generic)
SchemeName = Literal["nvfp4", "mxfp4", "int8", "fp8"]

E2M1 = np.asarray(E2M1_DOUBLED / 2, np.float32)
_E2M1_MAX, _E4M3_MAX, _INT8_MAX = 6.0, 448.0, 127.0
_INT8 = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Quantised:
    """A weight in one of the formats. `scheme` names it; its numbers are GRIDS[scheme][codes] times the scales."""

    scheme: SchemeName
    codes: Bytes
    """[out_features, in_features]: E2M1 codes (0 to 15), or bytes of int8 or E4M3."""
    block_scales: Bytes | None
    """[out_features, blocks]: codes in E4M3 (NVFP4) or E8M0 (MXFP4); None where rows have the only scale."""
    row_scales: Float32
    """[out_features]; all the same for NVFP4, all 1 for MXFP4."""

    def dequantise(self) -> Float32:
        numbers = GRIDS[self.scheme][self.codes]
        if self.block_scales is not None:
            scales = block_scale_numbers(self.scheme, self.block_scales)
            numbers = (numbers.reshape(*scales.shape, -1) * scales[:, :, None]).reshape(numbers.shape)
        return numbers * self.row_scales[:, None]


GRIDS: dict[SchemeName, Float32] = {"nvfp4": E2M1, "mxfp4": E2M1, "int8": _INT8, "fp8": E4M3}
"""The number of each code."""

BLOCK: dict[SchemeName, int] = {"nvfp4": 16, "mxfp4": 32, "int8": 0, "fp8": 0}
"""Columns that share a scale; 0: the whole row does."""


def block_scale_numbers(scheme: SchemeName, codes: Bytes) -> Float32:
    if scheme == "nvfp4":
        return E4M3[codes]
    return np.ldexp(np.float32(1), codes.astype(np.int32) - 127)


def encode(scheme: SchemeName, x: Float32) -> Bytes:
    """The code nearest to each number, ties to the even one; numbers beyond the grid get its end. Zero has no sign."""
    match scheme:
        case "nvfp4" | "mxfp4":
            return _e2m1_codes(x)
        case "int8":
            return np.clip(np.rint(x), -_INT8_MAX, _INT8_MAX).astype(np.int8).view(np.uint8)
        case "fp8":
            return _e4m3_codes(x)


def _e2m1_codes(x: Float32) -> Bytes:
    size = np.minimum(np.abs(x), np.float32(_E2M1_MAX))
    # The grid's step is 0.5 up to 2, 1 up to 4, 2 above; its numbers are codes 0-4, 4-6, 6-7.
    codes = np.rint(size + size)
    codes = np.where(size >= 2, np.rint(size) + 2, codes)
    codes = np.where(size >= 4, np.rint(size * np.float32(0.5)) + 4, codes)
    return np.asarray(codes.astype(np.uint8) | np.where((x < 0) & (codes > 0), np.uint8(8), np.uint8(0)))


def _e4m3_codes(x: Float32) -> Bytes:
    size = np.minimum(np.abs(x), np.float32(_E4M3_MAX))
    _, exponents = np.frexp(size)
    exponents = np.where(size > 0, exponents, -6)
    step_exponents = np.maximum(exponents - 1, -6) - 3  # eight steps to an octave; the lowest one is shared with zero
    steps = np.rint(np.ldexp(size, -step_exponents))  # 8 to 16 in an octave, 0 to 8 in the lowest
    codes = ((step_exponents + 9) * 8 + steps).astype(np.int32)
    return np.asarray(codes.astype(np.uint8) | np.where((x < 0) & (codes > 0), np.uint8(128), np.uint8(0)))


def row_scales(scheme: SchemeName, weight: Float32, importance: Float32, peak: float = 0.0) -> Float32:
    """[out_features]: what multiplies each row; `importance` [in_features] weighs the columns' squared errors.

    `peak`: NVFP4's scale has room for a number as large, if no number of the weight is larger.
    """
    largest = np.abs(weight).max(axis=1)
    match scheme:
        case "nvfp4":
            # Block scales up to 448 of it, for the largest number mapped to 4 (the largest scale that is tried).
            whole = max(float(largest.max()), peak) / (4.0 * _E4M3_MAX)
            exponent = np.ceil(np.log2(whole)) if whole > 0 else 0.0
            return np.full(len(weight), np.exp2(exponent), np.float32)
        case "mxfp4":
            return np.ones(len(weight), np.float32)
        case "fp8":
            return _or_one(largest / np.float32(_E4M3_MAX))
        case "int8":
            full = _or_one(largest / np.float32(_INT8_MAX))
            return _best(
                [full * np.float32(1 - 0.04 * step) for step in range(5)],
                lambda scales: _squared_error(scheme, weight, scales, importance),
            )


def block_scales(
    scheme: SchemeName, block: Float32, importance: Float32, *, search: bool = True
) -> tuple[Bytes, Float32]:
    """Codes and numbers [n] of the scales of `block` [n, columns], which row scales have been divided out of.

    `importance` is [columns] or [n, columns]. Without `search` the largest number is mapped to the grid's.
    """
    largest = np.abs(block).max(axis=1)
    if scheme == "nvfp4":
        base = _e4m3_codes(largest / np.float32(_E2M1_MAX)).astype(np.int32)
        offsets = range(-2, 6) if search else [0]  # eight codes to an octave: to 4 is about 5 above
        codes = [np.clip(base + offset, 1, 126).astype(np.uint8) for offset in offsets]
    else:
        _, exponents = np.frexp(largest)
        base = np.where(largest > 0, exponents - 1 - 2 + 127, 0)  # 6 is between 2^2 and 2^3
        codes = [np.clip(base + offset, 0, 254).astype(np.uint8) for offset in ((-1, 0, 1) if search else (0,))]
    best = _best(
        codes, lambda each: _squared_error(scheme, block, block_scale_numbers(scheme, each), importance)
    ) if len(codes) > 1 else codes[0]  # fmt: skip
    return best, block_scale_numbers(scheme, best)


def _or_one(scales: Float32) -> Float32:
    return np.where(scales > 0, scales, np.float32(1))


def _squared_error(scheme: SchemeName, x: Float32, scales: Float32, importance: Float32) -> Float32:
    """[n] of rows x [n, columns] under one scale each."""
    error = GRIDS[scheme][encode(scheme, x / scales[:, None])] * scales[:, None] - x
    return np.asarray((error * error * importance).sum(axis=1), np.float32)


def _best(candidates: list[npt.NDArray[T]], error: Callable[[npt.NDArray[T]], Float32]) -> npt.NDArray[T]:
    """Of candidates [n], element by element the one with the least error; the first wins a tie."""
    best, least = candidates[0], error(candidates[0])
    for candidate in candidates[1:]:
        found = error(candidate)
        better = found < least
        best, least = np.where(better, candidate, best), np.where(better, found, least)
    return best
