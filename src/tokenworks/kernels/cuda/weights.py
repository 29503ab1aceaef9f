"""Weights on the device: vectors as float32, matrices in the layout that their products read."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from tokenworks.kernels.cuda.experts.blocks import PackedStack
from tokenworks.kernels.cuda.loading import Loading, Slab, Source
from tokenworks.kernels.cuda.products.block_layout import bring_packed, bytes_of, coding_of, numbers
from tokenworks.kernels.cuda.products.blocks import pack_blocks
from tokenworks.kernels.cuda.products.dense import Bf16Matrix
from tokenworks.kernels.cuda.products.finish import Finish
from tokenworks.kernels.cuda.products.stacked import StackedMatrix
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Description, Tensor


class Matrix(Protocol):
    """Weights [out_features, in_features], of one tensor or of several that follow each other."""

    out_features: int
    in_features: int
    nbytes: int
    """On the device."""

    def reserve(self, finish: Finish) -> None:
        """Makes room in the scratch for products of up to as many rows as `finish` has: graphs hold its addresses."""

    def multiply(self, x: torch.Tensor, finish: Finish) -> None:
        """x [M, in_features], columns contiguous, float32 or bfloat16: the product goes where `finish` says."""


WIDE_FORMATS = ("BF16", "F16", "F32")


def pack_bf16(sources: Sequence[Source], loading: Loading) -> Bf16Matrix:
    """Any format, as bfloat16: two bytes a weight, whatever the file has."""
    rows = sum(source.what.shape[0] for source in sources)
    weights = torch.empty((rows, sources[0].what.shape[1]), dtype=torch.bfloat16, device=loading.device)
    at = 0
    for source in sources:
        bring_bf16(source, loading, weights[at : at + source.what.shape[0]])
        at += source.what.shape[0]
    return Bf16Matrix(weights)


def bring_bf16(source: Source, loading: Loading, out: torch.Tensor) -> None:
    """out: [rows, columns] bfloat16, on the device."""

    def write(slab: Slab) -> None:
        out[slab.rows].copy_(numbers(slab))

    loading.bring(source, write)


def pack_apart(sources: Sequence[Source], loading: Loading) -> Matrix | None:
    """Each in its own layout, where their formats differ and not all are of 16 bits or more anyway."""
    formats = {source.what.format for source in sources}
    if len(formats) == 1 or formats <= set(WIDE_FORMATS):
        return None
    return StackedMatrix([pack([source], loading) for source in sources])


LAYOUTS: tuple[Callable[[Sequence[Source], Loading], Matrix | None], ...] = (pack_blocks, pack_apart, pack_bf16)
"""The first that takes a stack of weights packs it; the last takes all."""


def pack(sources: Sequence[Source], loading: Loading) -> Matrix:
    """Of the weights' rows, one after the other. All have the same width. Its memory is there at once, what is in it
    when `loading` is done."""
    return next(matrix for layout in LAYOUTS if (matrix := layout(sources, loading)) is not None)


def packed_bytes(what: Description) -> int:
    """About what a weight takes on the device; not less."""
    if len(what.shape) == 2 and coding_of(what) is not None:
        return bytes_of(what)
    return math.prod(what.shape) * (4 if len(what.shape) == 1 else 2)


class Weights:
    """All of a program's, each packed where it is first used: vectors by name, matrices by the names they stack."""

    def __init__(
        self, loading: Loading, describe: Callable[[str], Description], look_up: Callable[[str], Tensor]
    ) -> None:
        """`look_up` may make a weight in that very moment, in any thread. Vectors come at once, matrices until
        `loading` is done."""
        self._loading, self._device, self._describe, self._look_up = loading, loading.device, describe, look_up
        self._vectors: dict[str, torch.Tensor] = {}
        self._matrices: dict[tuple[str, ...], Matrix] = {}
        self._tables: dict[str, torch.Tensor] = {}
        self._stacks: list[torch.Tensor | PackedStack] = []

    def vector(self, name: str) -> torch.Tensor:
        """float32, flat."""
        if name not in self._vectors:
            self._describe(name)  # raises what is wrong with it
            found = dequantise(self._look_up(name)).reshape(-1)
            self._vectors[name] = torch.from_numpy(np.array(found, np.float32)).to(self._device)
        return self._vectors[name]

    def matrix(self, names: tuple[str, ...]) -> Matrix:
        if names not in self._matrices:
            self._matrices[names] = pack([self._source(name) for name in names], self._loading)
        return self._matrices[names]

    def stack(self, names: Sequence[str]) -> torch.Tensor:
        """[weights, rows, columns] bfloat16, of weights of one shape: any format is rounded to it."""
        shape = self._describe(names[0]).shape
        out = torch.empty((len(names), *shape), dtype=torch.bfloat16, device=self._device)
        for at, name in enumerate(names):
            bring_bf16(self._source(name), self._loading, out[at])
        self._stacks.append(out)
        return out

    def experts(self, names: Sequence[str], count: int) -> torch.Tensor | PackedStack:
        """[count, rows, columns] of weights of one shape, as many of them for each of `count` experts; bfloat16 where
        their format has no coding, or not all have the same one."""
        sources = [self._source(name) for name in names]
        packed = bring_packed(sources, self._loading)
        if packed is None:
            return self.stack(names).view(count, -1, sources[0].what.shape[1])
        stack = PackedStack(packed, count)
        self._stacks.append(stack)
        return stack

    def heights(self, names: tuple[str, ...]) -> list[int]:
        """Rows of each of a matrix's weights."""
        return [self._describe(name).shape[0] for name in names]

    def table(self, name: str) -> torch.Tensor:
        """[rows, width] bfloat16, to be read row by row; the same memory as a product's, where that has such."""
        matrix = self._matrices.get((name,))
        if isinstance(matrix, Bf16Matrix):
            return matrix.weights
        if name not in self._tables:
            matrix = pack_bf16([self._source(name)], self._loading)
            if self._describe(name).format in WIDE_FORMATS:  # a product of the same weight takes it too
                self._matrices[name,] = matrix
                return matrix.weights
            self._tables[name] = matrix.weights
        return self._tables[name]

    @property
    def nbytes(self) -> int:
        tensors = (*self._vectors.values(), *self._tables.values(), *self._stacks)
        return sum(each.nbytes for each in tensors) + sum(each.nbytes for each in self._matrices.values())

    def _source(self, name: str) -> Source:
        return Source(self._describe(name), partial(self._look_up, name))
