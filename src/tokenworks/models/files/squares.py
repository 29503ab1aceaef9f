"""Weights in FP8 with a scale for each square of 128 x 128, as DeepSeek-V3 is shipped (arXiv 2412.19437, section 3.3).

The CPU's kernels have no such format. A weight becomes BF16 when it is looked up, as in DeepSeek's own conversion: what
its rounding adds is a sixteenth of what FP8's has left. For a GPU it stays in 8 bits, with a scale for each run of 64.
"""

from dataclasses import dataclass, replace

import numpy as np

from tokenworks.kernels.formats import FORMATS, bfloat16_bits, dequantise
from tokenworks.kernels.tensor import Tensor


def columns_of(tensor: Tensor, shape: tuple[int, int], first: int, count: int) -> Tensor:
    """A copy of what a tensor has for some columns of a weight of `shape`, of which it has as many bytes for each."""
    data = tensor.data.reshape(shape[0], -1)
    begin, end = (data.shape[1] * column // shape[1] for column in (first, first + count))
    columns = tensor.shape[1] * count // shape[1]
    return replace(tensor, shape=(shape[0], columns), data=np.ascontiguousarray(data[:, begin:end]).reshape(-1))


@dataclass(frozen=True, slots=True)
class Squares:
    """A weight [out, in] as it lies in its file; `tensor` makes one of it."""

    name: str
    shape: tuple[int, int]
    codes: Tensor
    """F8_E4M3, [out, in]."""
    scale: Tensor
    """Numbers, [squares down, squares across]; those at the edges may be cut off."""
    side: tuple[int, int]
    """Of a square: rows, columns."""
    first_row: int = 0
    """Of the codes, in the tensor that the scales are of."""
    first_column: int = 0

    @property
    def format(self) -> str:
        return "BF16"

    @property
    def has_runs(self) -> bool:
        """A square is whole runs of F8_64."""
        run = FORMATS["F8_64"].block_elements
        return self.side[1] % run == 0 == self.shape[1] % run

    def in_runs(self) -> Tensor:
        """F8_64, made anew at each call."""
        run = FORMATS["F8_64"].block_elements
        rows, columns = self.shape
        down = (self.first_row + np.arange(rows)) // self.side[0]
        across = (self.first_column + np.arange(0, columns, run)) // self.side[1]
        data = np.empty((rows, columns // run, FORMATS["F8_64"].block_bytes), np.uint8)
        data[:, :, 4:] = self.codes.data.reshape(rows, -1, run)
        scales = dequantise(self.scale).astype(np.float32)[:, across, None].view(np.uint8)
        data[:, :, :4] = scales[down]
        return Tensor(self.name, "F8_64", self.shape, data.reshape(-1))

    def rows(self, first: int, count: int) -> "Squares":
        """Some rows: views."""
        codes = self.codes.rows(first, count)
        return replace(self, shape=(count, self.shape[1]), codes=codes, first_row=self.first_row + first)

    def columns(self, first: int, count: int) -> "Squares":
        """Some columns: a copy of their codes."""
        codes = columns_of(self.codes, self.shape, first, count)
        return replace(self, shape=(self.shape[0], count), codes=codes, first_column=self.first_column + first)

    def tensor(self) -> Tensor:
        """Made anew at each call."""
        down, across = (
            (first + np.arange(count)) // side
            for first, count, side in zip((self.first_row, self.first_column), self.shape, self.side, strict=True)
        )
        numbers = dequantise(self.codes) * dequantise(self.scale)[down][:, across]
        halves = bfloat16_bits(np.ascontiguousarray(numbers, np.float32))
        return Tensor(self.name, "BF16", self.shape, halves.view(np.uint8).reshape(-1))
