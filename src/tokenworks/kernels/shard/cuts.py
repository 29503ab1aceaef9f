"""A rank's part of each weight: some of its rows, or of its columns."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.tensor import Description, Parting, Tensor, describe


@dataclass(frozen=True, slots=True)
class Cut:
    """Parts of the weight `source`, [begin, end) each, one after the other; none: all of it."""

    source: str
    axis: Literal["rows", "columns"]
    ranges: tuple[tuple[int, int], ...]


Cuts = Mapping[str, Cut]
"""By the name that a rank's program has for the part. What is not among them is whole."""


def cut_of(tensor: Tensor, cut: Cut) -> Tensor:
    """The part, in the tensor's own format: rows that follow each other are a view, all else is copied. Ranges of
    columns begin and end between blocks."""
    if not cut.ranges:
        return tensor
    if cut.axis == "rows":
        parts = [tensor.rows(begin, end - begin) for begin, end in cut.ranges]
    else:
        parts = [_columns(tensor, begin, end) for begin, end in cut.ranges]
    if len(parts) == 1:
        return parts[0]
    axis = 0 if cut.axis == "rows" else 1
    shape = list(tensor.shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    rows = tensor.shape[0] if axis else 1
    data = np.concatenate([part.data.reshape(rows, -1) for part in parts], axis=1).reshape(-1)
    scales = tensor.row_scales
    if scales is not None and not axis:
        scales = np.concatenate([part.row_scales for part in parts if part.row_scales is not None])
    return replace(tensor, shape=tuple(shape), data=data, row_scales=scales)


def _columns(tensor: Tensor, begin: int, end: int) -> Tensor:
    rows, columns = tensor.shape
    if (begin, end) == (0, columns):
        return tensor
    form = FORMATS[tensor.format]
    assert begin % form.block_elements == 0 == end % form.block_elements, "a block is never cut"
    of_row = tensor.data.reshape(rows, -1)[:, form.row_bytes(begin) : form.row_bytes(end)]
    return replace(tensor, shape=(rows, end - begin), data=np.ascontiguousarray(of_row).reshape(-1))


@dataclass(frozen=True, slots=True)
class Shard(Mapping[str, Tensor]):
    """A rank's weights: each is cut when it is looked up."""

    whole: Mapping[str, Tensor]
    cuts: Cuts

    def __getitem__(self, name: str) -> Tensor:
        cut = self.cuts.get(name)
        if cut is None:
            return self.whole[name]
        part = None
        if isinstance(self.whole, Parting) and len(cut.ranges) == 1:
            part = self.whole.part(cut.source, cut.axis, *cut.ranges[0])
        return replace(part or cut_of(self.whole[cut.source], cut), name=name)

    def describe(self, name: str) -> Description:
        """What the part will be."""
        cut = self.cuts.get(name)
        what = describe(self.whole, name if cut is None else cut.source)
        if what is None:
            raise KeyError(name)
        if cut is None or not cut.ranges:
            return what
        shape, axis = list(what.shape), 0 if cut.axis == "rows" else 1
        shape[axis] = sum(end - begin for begin, end in cut.ranges)
        return replace(what, shape=tuple(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole.keys() | self.cuts.keys())

    def __len__(self) -> int:
        return len(self.whole.keys() | self.cuts.keys())


class Names:
    """What a rank's program calls its parts. A weight that is used whole and in part has a name for each."""

    def __init__(self) -> None:
        self._uses: dict[str, list[Cut | None]] = {}
        self.cuts: dict[str, Cut] = {}

    def of(self, source: str, cut: Cut | None = None) -> str:
        """Without `cut` the whole weight."""
        uses = self._uses.setdefault(source, [])
        if cut not in uses:
            uses.append(cut)
        number = uses.index(cut)
        name = f"{source}#{number}" if number else source
        if cut is not None or number:
            self.cuts[name] = cut or Cut(source, "rows", ())
        return name

    def rows(self, source: str, ranges: Iterable[tuple[int, int]], whole: int) -> str:
        """Some rows of a weight that has `whole` of them."""
        joined: list[tuple[int, int]] = []
        for begin, end in ranges:
            if joined and joined[-1][1] == begin:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((begin, end))
        return self.of(source, None if joined == [(0, whole)] else Cut(source, "rows", tuple(joined)))
