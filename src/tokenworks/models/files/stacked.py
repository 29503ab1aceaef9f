"""Files that keep all experts' weights of a layer in one tensor, [experts, rows, ...]: seen as a tensor for each.

Slices are views of the mapped file, but for rows that lie interleaved or transposed; those are put in order when they
are looked up, one expert at a time.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.files.quantised import PackedTensor, StackedBlocks
from tokenworks.models.files.squares import Squares


@dataclass(frozen=True, slots=True)
class Stack:
    """How one tensor of a file holds weights of every expert. {} stands for the layer, then for the expert."""

    name: str
    parts: tuple[str, ...]
    """The names that its pieces would have alone; an expert's rows are shared out among several."""
    alternate: bool = False
    """Row i belongs to part i % len(parts); else each part's rows are consecutive."""
    transposed: bool = False
    """[experts, columns, rows], where it is no StackedBlocks."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows start, start + step, ... of expert `number`, which `tensor` brings together."""

    name: str
    shape: tuple[int, ...]
    whole: Tensor | StackedBlocks
    number: int
    start: int
    step: int
    transposed: bool

    @property
    def format(self) -> str:
        return self.whole.format

    def tensor(self) -> Tensor:
        if isinstance(self.whole, StackedBlocks):
            return self.whole.rows_of(self.name, self.number, self._rows).tensor()
        data = self.whole.data.reshape(self.whole.shape[0], -1)[self.number]
        if self.transposed:
            # Elements, so that the last two axes can change places; blocks never do.
            width = FORMATS[self.whole.format].block_bytes
            data = data.reshape(*self.whole.shape[1:], width).swapaxes(0, 1)
        else:
            data = data.reshape(self.whole.shape[1], -1)
        picked = np.ascontiguousarray(data[self._rows]).reshape(-1)
        return Tensor(self.name, self.whole.format, self.shape, picked, self._scales())

    @property
    def _rows(self) -> slice:
        return slice(self.start, self.start + (self.shape[0] - 1) * self.step + 1, self.step)

    def _scales(self) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None":
        """A GGUF file may have one scale for each expert."""
        assert isinstance(self.whole, Tensor)
        if self.whole.row_scales is None:
            return None
        return np.full(self.shape[0], self.whole.row_scales[self.number], np.float32)


def whole_of(name: str, stacks: tuple[Stack, ...]) -> tuple[str, int] | None:
    """The stack, and the expert's place in it, of a piece that has a stack of its own."""
    for stack in stacks:
        pattern = re.escape(stack.parts[0]).replace(r"\{\}", r"(\d+)")
        match = re.fullmatch(pattern, name) if len(stack.parts) == 1 else None
        if match:
            return stack.name.format(match[1]), int(match[2])
    return None


Found = Tensor | PackedTensor | StackedBlocks | Squares | Piece


def unstack(found: Mapping[str, Found], stacks: tuple[Stack, ...]) -> dict[str, Found]:
    """`found` with each tensor of `stacks` replaced by its pieces."""
    patterns = [(re.compile(re.escape(stack.name).replace(r"\{\}", r"(\d+)")), stack) for stack in stacks]
    unstacked: dict[str, Found] = {}
    for name, tensor in found.items():
        for pattern, stack in patterns:
            match = pattern.fullmatch(name)
            if match and isinstance(tensor, Tensor | StackedBlocks) and len(tensor.shape) > 1:
                unstacked |= {piece.name: piece for piece in _pieces(tensor, stack, match[1])}
                break
        else:
            unstacked[name] = tensor
    return unstacked


def _pieces(tensor: Tensor | StackedBlocks, stack: Stack, layer: str) -> list[Piece]:
    experts, *shape = tensor.shape
    transposed = stack.transposed and isinstance(tensor, Tensor)
    if transposed:
        shape.reverse()
    count = len(stack.parts)
    rows = shape[0] // count
    return [
        Piece(
            part.format(layer, number),
            (rows, *shape[1:]),
            tensor,
            number,
            at if stack.alternate else at * rows,
            count if stack.alternate else 1,
            transposed,
        )
        for number in range(experts)
        for at, part in enumerate(stack.parts)
    ]
