"""The table of storage formats: how many bytes a block of elements takes, and what numbers those bytes mean.

A format stores a tensor row-major as blocks of `block_elements` consecutive elements. The block formats are those of
GGUF files; their layouts follow ggml's structures (github.com/ggml-org/ggml, src/ggml-common.h). The small floats are
those of the OCP specifications "Microscaling Formats (MX)" (E2M1, E8M0) and "8-bit Floating Point" (E4M3). I8 and
F8_E4M3 are one byte per element and leave the scale to the tensor's `row_scales`. A block never crosses a row, so whole
rows can be moved without looking inside. `dequantise` is the slow, obvious meaning of a format: the numpy reference
runs on it, and every packed kernel is held to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.tensor import Tensor

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Format:
    """One row of the table. `unpack` turns blocks [n, block_bytes] uint8 into [n, block_elements] float32."""

    name: str
    block_elements: int
    block_bytes: int
    unpack: Callable[[Bytes], Float32]

    def row_bytes(self, elements: int) -> int:
        """Bytes of one row; `elements` is a multiple of `block_elements`."""
        return elements // self.block_elements * self.block_bytes


def tensor_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Size in bytes of a tensor of format `name`. Raises ValueError when a row is not whole blocks."""
    form = FORMATS[name]
    elements = math.prod(shape)
    if elements and shape and shape[-1] % form.block_elements:
        raise ValueError(f"a row of {shape[-1]} elements is not whole blocks of {form.block_elements} ({name})")
    return form.row_bytes(elements)


def dequantise(tensor: Tensor) -> Float32:
    """The numbers of a tensor: float32, of its shape. Four bytes an element: for tests and the reference only."""
    form = FORMATS[tensor.format]
    blocks = np.ascontiguousarray(tensor.data).reshape(-1, form.block_bytes)
    numbers = form.unpack(blocks).reshape(tensor.shape)
    if tensor.row_scales is None:
        return numbers
    return numbers * tensor.row_scales.reshape(-1, *(1,) * (len(tensor.shape) - 1))


def _half(blocks: Bytes, at: int) -> Float32:
    """The float16 at byte `at` of each block, as a column [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[..., k] bytes to [..., 2k]: all low nibbles, then all high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """[n, 4] bytes to [n, 32]: bit e of the little-endian word, as 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _f32(blocks: Bytes) -> Float32:
    return blocks.view("<f4").astype(np.float32)


def _f16(blocks: Bytes) -> Float32:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Float32:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def bfloat16_bits(values: Float32) -> npt.NDArray[np.uint16]:
    """Float32 numbers, contiguous, rounded to bfloat16, ties to even: its bits, in their shape. NaN is not expected."""
    bits = values.view(np.uint32)
    return (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)).astype("<u2")


def _q8_0(blocks: Bytes) -> Float32:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_0(blocks: Bytes) -> Float32:
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Float32:
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Float32:
    levels = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (levels.astype(np.float32) - 16) * _half(blocks, 0)


def _q5_1(blocks: Bytes) -> Float32:
    levels = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return levels.astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _k_scales(blocks: Bytes) -> tuple[Float32, Float32]:
    """Of a Q4_K or Q5_K block: scale and minimum of its eight groups of 32, [n, 8] each.

    Twelve bytes hold eight 6-bit scales and eight 6-bit minima: groups 0-3 whole in the low six bits of bytes 0-3
    (scales) and 4-7 (minima); groups 4-7 with four bits in bytes 8-11 (low nibble scale, high nibble minimum) and the
    upper two bits in the spare top bits of bytes 0-3 and 4-7.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6 << 4)), axis=1)
    minima = np.concatenate((second & 63, (third >> 4) | (second >> 6 << 4)), axis=1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima


def _k_levels(blocks: Bytes, levels: Bytes) -> Float32:
    scales, minima = _k_scales(blocks)
    groups = levels.astype(np.float32).reshape(-1, 8, 32) * scales[:, :, None] - minima[:, :, None]
    return groups.reshape(-1, 256)


def _q4_k(blocks: Bytes) -> Float32:
    return _k_levels(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)))


def _q5_k(blocks: Bytes) -> Float32:
    # Bit g of byte i is the fifth bit of element i of group g.
    high = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1) << np.uint8(4)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _k_levels(blocks, low | high)


def _q6_k(blocks: Bytes) -> Float32:
    # Two halves of 128 elements; in each, four runs of 32: low nibbles of 64 bytes, then their high nibbles, and the
    # upper two bits of run r in bits 2r, 2r+1 of 32 bytes.
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    levels = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208)
    return (levels * scales[:, :, None]).reshape(-1, 256)


E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the sixteen numbers of E2M1, by code: whole numbers; ggml halves the scales instead."""


def _mxfp4(blocks: Bytes) -> Float32:
    # 2^(e - 127) is a float32 of exponent e, or a subnormal; ldexp makes its half exactly.
    halved: Float32 = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return E2M1_DOUBLED[_nibbles(blocks[:, 1:])] * halved


def _nvfp4(blocks: Bytes) -> Float32:
    # Four runs of 16 elements with a scale each: the low nibbles of its 8 bytes, then the high ones. Scales are E4M3
    # without the sign; ggml reads the code of NaN as 0.
    scales = E4M3[blocks[:, :4] & 127] * np.float32(0.5)
    scales[blocks[:, :4] == 127] = 0
    scales[blocks[:, :4] == 255] = 240
    codes = _nibbles(blocks[:, 4:].reshape(-1, 4, 8))
    numbers: Float32 = E2M1_DOUBLED[codes] * scales[:, :, None]
    return numbers.reshape(-1, 64)


def _e4m3_numbers() -> Float32:
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissas / 8, exponents - 7)
    numbers: npt.NDArray[np.float64] = np.where(exponents == 0, np.ldexp(mantissas / 8, -6), normal)
    numbers *= np.where(codes & 128, -1, 1)
    numbers[[127, 255]] = np.nan
    return numbers.astype(np.float32)


E4M3 = _e4m3_numbers()
"""The numbers of FP8 E4M3, by code: bias 7, no infinities, NaN only where all seven bits are set."""


def _i8(blocks: Bytes) -> Float32:
    return blocks.view(np.int8).astype(np.float32)


def _f8_e4m3(blocks: Bytes) -> Float32:
    return E4M3[blocks]


def _f8_64(blocks: Bytes) -> Float32:
    return E4M3[blocks[:, 4:]] * _f32(np.ascontiguousarray(blocks[:, :4]))


FORMATS = {
    row.name: row
    for row in (
        Format("F32", 1, 4, _f32),
        Format("F16", 1, 2, _f16),
        Format("BF16", 1, 2, _bf16),
        Format("Q8_0", 32, 34, _q8_0),  # f16 scale, 32 x int8
        Format("Q4_0", 32, 18, _q4_0),  # f16 scale, 16 bytes of nibbles; levels count from -8
        Format("Q4_1", 32, 20, _q4_1),  # f16 scale, f16 minimum, 16 bytes of nibbles
        # llama.cpp falls back to these two where rows are not whole blocks of 256: most of Gemma 3 270M (width 640).
        Format("Q5_0", 32, 22, _q5_0),  # f16 scale, 4 bytes of fifth bits, 16 bytes of nibbles; levels from -16
        Format("Q5_1", 32, 24, _q5_1),  # f16 scale, f16 minimum, fifth bits, nibbles
        Format("Q4_K", 256, 144, _q4_k),  # f16 scale, f16 minimum, 12 bytes of 6-bit scales, 128 of nibbles
        Format("Q5_K", 256, 176, _q5_k),  # the same with 32 bytes of fifth bits before the nibbles
        Format("Q6_K", 256, 210, _q6_k),  # 128 bytes of nibbles, 64 of upper bits, 16 x int8 scale, f16 scale
        Format("MXFP4", 32, 17, _mxfp4),  # E8M0 scale, 16 bytes of E2M1 codes
        Format("NVFP4", 64, 36, _nvfp4),  # 4 E4M3 scales, each of 16 elements, 32 bytes of E2M1 codes
        Format("I8", 1, 1, _i8),
        Format("F8_E4M3", 1, 1, _f8_e4m3),
        Format("F8_64", 64, 68, _f8_64),  # f32 scale, 64 x E4M3: ours, of files with scales by square
    )
}
"""Format by name."""
