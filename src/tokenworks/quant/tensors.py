"""A quantised weight as the kernels take it."""

import numpy as np

from tokenworks.kernels.tensor import Tensor
from tokenworks.quant.schemes import Quantised, SchemeName

_RUN: dict[SchemeName, int] = {"nvfp4": 16, "mxfp4": 32}
_BLOCK: dict[SchemeName, int] = {"nvfp4": 64, "mxfp4": 32}
_FORMAT: dict[SchemeName, str] = {"nvfp4": "NVFP4", "mxfp4": "MXFP4", "int8": "I8", "fp8": "F8_E4M3"}


def fits(scheme: SchemeName, columns: int) -> bool:
    """Whether a weight of so many columns is whole blocks of the scheme's format."""
    return columns % _BLOCK.get(scheme, 1) == 0


def kernel_tensor(name: str, weight: Quantised) -> Tensor:
    """`weight` in a format of kernels/formats.py, number for number. Raises ValueError when its columns are not whole
    blocks of that format (64 for NVFP4, 32 for MXFP4)."""
    rows, columns = weight.codes.shape
    shape, form = (rows, columns), _FORMAT[weight.scheme]
    if weight.block_scales is None:
        return Tensor(name, form, shape, weight.codes.reshape(-1), weight.row_scales)
    run, block = _RUN[weight.scheme], _BLOCK[weight.scheme]
    if not fits(weight.scheme, columns):
        raise ValueError(f"{name} has {columns} columns; {form} takes multiples of {block}")
    # Within a run of columns ggml puts the first half in the low nibbles and the second half in the high ones.
    runs = weight.codes.reshape(rows, columns // run, run)
    nibbles = runs[:, :, : run // 2] | runs[:, :, run // 2 :] << np.uint8(4)
    blocks = (rows, columns // block, -1)
    data = np.concatenate((weight.block_scales.reshape(blocks), nibbles.reshape(blocks)), axis=2)
    return Tensor(name, form, shape, data.reshape(-1), weight.row_scales)
