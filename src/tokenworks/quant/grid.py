"""On how fine a grid weights lie already: a format on the same grid looks lossless without being so."""

from collections.abc import Iterable, Mapping

import numpy as np

from tokenworks.kernels.formats import FORMATS, dequantise
from tokenworks.kernels.tensor import Tensor

_BITS = {
    **{"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "MXFP4": 4, "NVFP4": 4},
    **{"Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q6_K": 6, "Q8_0": 8, "I8": 8, "F8_E4M3": 8},
}
"""Bits of a number's code; the floats have none."""

_BLOCK = 32
_SAMPLE_ROWS = 64


def grid_bits(tensors: Iterable[Tensor]) -> int | None:
    """Bits of the grid that most numbers of these matrices lie on, by their format; or, where they are stored as
    floats, 4 if blocks of 32 hold no more than 16 different numbers, as those of widened 4-bit files do. None: no grid
    found."""
    elements: dict[int | None, int] = {}
    for tensor in tensors:
        bits = _bits(tensor)
        elements[bits] = elements.get(bits, 0) + tensor.shape[0] * tensor.shape[1]
    return max(elements, key=lambda bits: elements[bits]) if elements else None


def _bits(tensor: Tensor) -> int | None:
    if tensor.format in _BITS:
        return _BITS[tensor.format]
    rows, columns = min(tensor.shape[0], _SAMPLE_ROWS), tensor.shape[1]
    if columns < _BLOCK:
        return None
    sample = Tensor(
        tensor.name,
        tensor.format,
        (rows, columns),
        tensor.data[: FORMATS[tensor.format].row_bytes(columns) * rows],
        None if tensor.row_scales is None else tensor.row_scales[:rows],
    )
    blocks = np.sort(dequantise(sample)[:, : columns // _BLOCK * _BLOCK].reshape(-1, _BLOCK), axis=1)
    different = 1 + (blocks[:, 1:] != blocks[:, :-1]).sum(axis=1)
    return 4 if int(np.quantile(different, 0.99)) <= 16 else None


def stored_as(tensors: Mapping[str, Tensor]) -> str:
    """The formats of the matrices among `tensors`, that of most numbers first: "Q4_1, Q8_0"."""
    elements: dict[str, int] = {}
    for tensor in tensors.values():
        if len(tensor.shape) == 2:
            elements[tensor.format] = elements.get(tensor.format, 0) + tensor.shape[0] * tensor.shape[1]
    return ", ".join(sorted(elements, key=lambda name: -elements[name]))
