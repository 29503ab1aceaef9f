"""Weights on the device: vectors as float32, matrices in the layout that their products read."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from tokenworks.kernels.cuda.block_experts import PackedStack
from tokenworks.kernels.cuda.block_layout import bytes_of, coding_of, joined, packed
from tokenworks.kernels.cuda.blocks import pack_blocks
from tokenworks.kernels.cuda.finish import Finish
from tokenworks.kernels.cuda.products import Bf16Matrix
from tokenworks.kernels.cuda.stacked import StackedMatrix
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor

SLAB_BYTES = 64 << 20
"""Of a matrix that is brought into another form: in so many bytes of float32 at a time."""


class Matrix(Protocol):
    """Weights [out_features, in_features], of one tensor or of several that follow each other."""

    out_features: int
    in_features: int
    nbytes: int
    """On the device."""

    def reserve(self, finish: Finish) -> None:
        """Makes room in the scratch for products of few rows, which graphs hold."""

    def multiply(self, x: torch.Tensor, finish: Finish) -> None:
        """x [M, in_features], columns contiguous, float32 or bfloat16: the product goes where `finish` says."""


WIDE_FORMATS = ("BF16", "F16", "F32")


def pack_bf16(tensors: Sequence[Tensor], device: torch.device) -> Bf16Matrix:
    """Any format, as bfloat16: two bytes a weight, whatever the file has."""
    rows = sum(tensor.shape[0] for tensor in tensors)
    weights = torch.empty((rows, tensors[0].shape[1]), dtype=torch.bfloat16, device=device)
    at = 0
    for tensor in tensors:
        write_bf16(tensor, weights[at : at + tensor.shape[0]])
        at += tensor.shape[0]
    return Bf16Matrix(weights)


def write_bf16(tensor: Tensor, out: torch.Tensor) -> None:
    """out: [rows, columns] bfloat16, on the device."""
    count, width = tensor.shape
    if tensor.format == "BF16" and tensor.row_scales is None:
        out.copy_(from_numpy(tensor.data).view(torch.bfloat16).view(count, width))
        return
    slab = max(1, SLAB_BYTES // (4 * width))
    for first in range(0, count, slab):
        numbers = dequantise(tensor.rows(first, min(slab, count - first)))
        out[first : first + len(numbers)].copy_(torch.from_numpy(numbers))


def pack_apart(tensors: Sequence[Tensor], device: torch.device) -> Matrix | None:
    """Each in its own layout, where their formats differ and not all are of 16 bits or more anyway."""
    formats = {tensor.format for tensor in tensors}
    if len(formats) == 1 or formats <= set(WIDE_FORMATS):
        return None
    return StackedMatrix([pack([tensor], device) for tensor in tensors])


LAYOUTS: tuple[Callable[[Sequence[Tensor], torch.device], Matrix | None], ...] = (pack_blocks, pack_apart, pack_bf16)
"""The first that takes a stack of weights packs it; the last takes all."""


def pack(tensors: Sequence[Tensor], device: torch.device) -> Matrix:
    """Of the tensors' rows, one after the other. All have the same width."""
    return next(matrix for layout in LAYOUTS if (matrix := layout(tensors, device)) is not None)


def packed_bytes(tensor: Tensor) -> int:
    """About what a weight takes on the device; not less."""
    if len(tensor.shape) == 2 and coding_of(tensor) is not None:
        return bytes_of(tensor)
    return math.prod(tensor.shape) * (4 if len(tensor.shape) == 1 else 2)


def from_numpy(data: np.ndarray) -> torch.Tensor:
    """uint8, flat: a view, also of memory that cannot be written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody may write to it: nobody does
        return torch.from_numpy(data)


def vector(tensor: Tensor, device: torch.device) -> torch.Tensor:
    """float32, flat."""
    return torch.from_numpy(np.array(dequantise(tensor), np.float32).reshape(-1)).to(device)


class Weights:
    """All of a program's, each packed where it is first used: vectors by name, matrices by the names they stack."""

    def __init__(self, device: torch.device, look_up: Callable[[str], Tensor]) -> None:
        """`look_up` may make a weight in that very moment; each is asked for once and forgotten by `done`."""
        self._device, self._look_up = device, look_up
        self._vectors: dict[str, torch.Tensor] = {}
        self._matrices: dict[tuple[str, ...], Matrix] = {}
        self._tables: dict[str, torch.Tensor] = {}
        self._stacks: list[torch.Tensor | PackedStack] = []
        self._found: dict[str, Tensor] = {}

    def vector(self, name: str) -> torch.Tensor:
        if name not in self._vectors:
            self._vectors[name] = vector(self._tensor(name), self._device)
        return self._vectors[name]

    def matrix(self, names: tuple[str, ...]) -> Matrix:
        if names not in self._matrices:
            self._matrices[names] = pack([self._tensor(name) for name in names], self._device)
        return self._matrices[names]

    def stack(self, names: Sequence[str]) -> torch.Tensor:
        """[weights, rows, columns] bfloat16, of weights of one shape: any format is rounded to it."""
        shape = self._tensor(names[0]).shape
        out = torch.empty((len(names), *shape), dtype=torch.bfloat16, device=self._device)
        for at, name in enumerate(names):
            write_bf16(self._tensor(name), out[at])
            del self._found[name]
        self._stacks.append(out)
        return out

    def experts(self, names: Sequence[str], count: int) -> torch.Tensor | PackedStack:
        """[count, rows, columns] of weights of one shape, as many of them for each of `count` experts; bfloat16 where
        their format has no coding, or not all have the same one."""
        first = self._tensor(names[0])
        if coding_of(first) is None or len({coding_of(self._tensor(name)) for name in names}) > 1:
            return self.stack(names).view(count, -1, first.shape[1])
        stack = PackedStack(joined([packed(self._tensor(name), self._device) for name in names]), count)
        self._stacks.append(stack)
        return stack

    def heights(self, names: tuple[str, ...]) -> list[int]:
        """Rows of each of a matrix's weights."""
        return [self._tensor(name).shape[0] for name in names]

    def table(self, name: str) -> torch.Tensor:
        """[rows, width] bfloat16, to be read row by row; the same memory as a product's, where that has such."""
        matrix = self._matrices.get((name,))
        if isinstance(matrix, Bf16Matrix):
            return matrix.weights
        if name not in self._tables:
            matrix = pack_bf16([self._tensor(name)], self._device)
            if self._tensor(name).format in WIDE_FORMATS:  # a product of the same weight takes it too
                self._matrices[name,] = matrix
                return matrix.weights
            self._tables[name] = matrix.weights
        return self._tables[name]

    def done(self) -> None:
        """Everything is packed."""
        self._found = {}

    @property
    def nbytes(self) -> int:
        tensors = (*self._vectors.values(), *self._tables.values(), *self._stacks)
        return sum(each.nbytes for each in tensors) + sum(each.nbytes for each in self._matrices.values())

    def _tensor(self, name: str) -> Tensor:
        if name not in self._found:
            self._found[name] = self._look_up(name)
        return self._found[name]
