"""A weight as it lies in its file: bytes and a number format. Backends pack it; nobody blows it up."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tensor:
    """`data` is uint8, flat, row-major in `format` (a name in kernels/formats.py); usually a view of a mapped file.

    `shape` is in elements, outermost first: [out_features, in_features] for a linear weight. `row_scales`, float32
    [shape[0]], multiply the numbers of each row: the second-level scale of NVFP4, the scales of I8 and F8_E4M3.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]
    row_scales: npt.NDArray[np.float32] | None = None
    fp8_inputs: bool = False
    """The checkpoint rounds what the weight is multiplied with to E4M3, each token with a scale of its own: a backend
    that gains by it may."""

    @property
    def description(self) -> "Description":
        return Description(self.format, self.shape, self.fp8_inputs)

    def rows(self, first: int, count: int) -> "Tensor":
        """Some rows of the outermost dimension: a view."""
        if count == self.shape[0]:
            return self
        row_bytes = self.data.nbytes // self.shape[0]
        scales = self.row_scales
        return replace(
            self,
            shape=(count, *self.shape[1:]),
            data=self.data[first * row_bytes : (first + count) * row_bytes],
            row_scales=None if scales is None else scales[first : first + count],
        )


@dataclass(frozen=True, slots=True)
class Description:
    """What a weight is, without its bytes."""

    format: str
    shape: tuple[int, ...]
    fp8_inputs: bool = False


@runtime_checkable
class Describing(Protocol):
    """Weights that are made when they are looked up, and say beforehand what they will be."""

    @abstractmethod
    def describe(self, name: str) -> Description:
        """The format and shape of what looking it up gives. Raises KeyError."""


@runtime_checkable
class Parting(Protocol):
    """Weights that are made when they are looked up, and can make a part without the rest."""

    @abstractmethod
    def part(self, name: str, axis: Literal["rows", "columns"], begin: int, end: int) -> Tensor | None:
        """Some rows, or some columns, whole blocks, of what looking it up gives; None where that is no less work than
        all of it. Raises KeyError."""


def describe(weights: Mapping[str, Tensor], name: str) -> Description | None:
    """None where there is no such weight."""
    if name not in weights:
        return None
    if isinstance(weights, Describing):
        return weights.describe(name)
    return weights[name].description
