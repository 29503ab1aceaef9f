"""Which columns of a program's buffers can be divided among ranks, and in how many units.

Buffers are cut into pieces, wherever an instruction reads or writes from. Pieces that one instruction treats column by
column, or head by head, are of one group: divided alike or not at all. An instruction that needs all columns of a row
at once (the norm of a residual stream, a router) keeps its group whole. What is left is divided if it begins with
linear maps: queries to what attention reads, gate and up to what goes into down.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tokenworks.kernels.flow import reads_of, written_by
from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.program import (
    Activate,
    Add,
    Attend,
    DeltaRule,
    Gate,
    Instruction,
    Keep,
    KvLayer,
    Linear,
    LinearHeads,
    Multiply,
    Program,
    RmsNorm,
    Rope,
    Scale,
    ScaleRows,
    SelectiveScan,
    SelectRows,
    ShortConvolution,
    Softcap,
    Value,
)
from tokenworks.kernels.tensor import Description
from tokenworks.protocol.errors import ModelError

Described = Callable[[str], Description]
"""What a weight is, by name."""

Piece = tuple[int, int, int]
"""Of a buffer, by its number: columns [begin, end). Of a cache layer: -1, its number, 0."""

LEAST_SHARE = 4
"""Maps that make less than such a part of the columns they read are left whole: bringing ranks together would cost more
time than they take."""
VOCABULARY_UNIT = 64


def share(units: int, ranks: int, rank: int) -> tuple[int, int]:
    """[begin, end): as even as whole units allow. Of fewer units than ranks, several ranks have the same one."""
    if units >= ranks:
        return units * rank // ranks, units * (rank + 1) // ranks
    return rank * units // ranks, rank * units // ranks + 1


def alike(op: Instruction) -> tuple[Value, ...]:
    """What the instruction reads and writes column by column, or head by head: of the same width all. None of it where
    it does not work so."""
    match op:
        case Gate(gate=gate, up=up, output=output):
            return gate, up, output
        case Add(a=a, b=b, output=output):
            return a, b, output
        case RmsNorm(group=group, x=x) if group == x.width:
            return ()
        case RmsNorm() | Rope() | Scale() | ScaleRows() | Activate() | Softcap() | Multiply() | SelectRows():
            return op.x, op.output
        case ShortConvolution():
            return op.x, op.output
        case _:
            return ()


class Pieces:
    """Of all buffers."""

    def __init__(self, program: Program, described: Described) -> None:
        self._edges: list[set[int]] = [{0, width} for width in program.buffer_widths]
        for op in program.instructions:
            for value in (*reads_of(op), written_by(op)):
                if value is not None:
                    self._edges[value.buffer] |= {value.offset, value.offset + value.width}
            if isinstance(op, Linear):
                self._edges[op.output.buffer] |= {op.output.offset + end for _, end in rows_of(op, described)}
        lines_up = False
        while not lines_up:
            lines_up = not sum(self._line_up(alike(op)) for op in program.instructions)
        self._sorted = [sorted(edges) for edges in self._edges]

    def _line_up(self, values: Sequence[Value]) -> bool:
        """Gives all values the edges of each; whether there were new ones."""
        inside = {
            edge - value.offset
            for value in values
            for edge in self._edges[value.buffer]
            if value.offset <= edge <= value.offset + value.width
        }
        new = False
        for value in values:
            edges = {value.offset + edge for edge in inside}
            new = new or not edges <= self._edges[value.buffer]
            self._edges[value.buffer] |= edges
        return new

    def of(self, value: Value) -> list[Piece]:
        return self._between(value.buffer, value.offset, value.offset + value.width)

    def of_buffer(self, buffer: int) -> list[Piece]:
        return self._between(buffer, 0, self._sorted[buffer][-1])

    def _between(self, buffer: int, begin: int, end: int) -> list[Piece]:
        edges = [edge for edge in self._sorted[buffer] if begin <= edge <= end]
        return [(buffer, *pair) for pair in itertools.pairwise(edges)]


def rows_of(op: Linear, described: Described) -> list[tuple[int, int]]:
    """Of each weight: the columns of the output that it makes."""
    if len(op.weights) == 1:
        return [(0, op.output.width)]
    ends, at = [], 0
    for name in op.weights:
        rows = described(name).shape[0]
        ends.append((at, at + rows))
        at += rows
    return ends


@dataclass(slots=True)
class _Group:
    """Pieces that are divided alike."""

    grains: list[int] = field(default_factory=list)
    """Of each piece, by each instruction: how many units that must not be divided it consists of."""
    whole: bool = False
    made: int = 0
    """Columns that linear maps make of whole rows ..."""
    read: int = 0
    """... of at most so many columns."""
    attends: Attend | None = None
    follows: tuple[Piece, ...] = ()
    """Heads that many others share, which are these: divided if those are, and several ranks may have the same one."""
    even: bool = False
    """All ranks must have as many units."""
    scans: bool = False
    """A state is among them."""
    normed: bool = False
    """Made of what a state made, whole."""

    @property
    def units(self) -> int:
        return math.gcd(*self.grains)

    def divides(self, ranks: int) -> bool:
        if not self._wants:
            return False
        if self.follows:
            return True
        return self.units >= ranks and not (self.even and self.units % ranks)

    @property
    def _wants(self) -> bool:
        worthwhile = self.attends is not None or self.normed or LEAST_SHARE * self.made >= max(1, self.read)
        return not self.whole and bool(self.grains) and worthwhile

    def fails(self, ranks: int) -> bool:
        """Attention that is not divided for its heads' or blocks' sake."""
        return self.attends is not None and self._wants and not self.divides(ranks)


class Groups:
    """Of a program's pieces, for so many ranks."""

    def __init__(self, program: Program, pieces: Pieces, described: Described, ranks: int) -> None:
        self._pieces, self._described, self._ranks = pieces, described, ranks
        self._layers = program.cache_layers
        self._parent: dict[Piece, Piece] = {}
        self._groups: dict[Piece, _Group] = {}
        self._largest_block = 1
        norms: list[RmsNorm] = []
        for op in program.instructions:
            if isinstance(op, RmsNorm) and not alike(op):
                norms.append(op)
            else:
                self._take(op)
        for norm in norms:
            self._take_norm(norm)
        if program.hidden is not None:
            self._keep_whole(program.hidden)
        for piece in pieces.of(program.result):
            width = piece[2] - piece[1]
            self._group(piece).grains.append(width // math.gcd(width, VOCABULARY_UNIT))
        for group in self._groups.values():
            if group.attends is not None and group.fails(ranks):
                of = group.attends
                raise ModelError(
                    f"tensor_parallel: {ranks} GPUs cannot share a model whose attention has {of.heads} heads over "
                    f"{of.kv_heads} of K and V, with weights in blocks of up to {self._largest_block} numbers."
                )

    def units(self, piece: Piece) -> int:
        """In how many units it is divided; 0: it is not."""
        group = self._group(piece)
        divides = group.divides(self._ranks) and all(map(self.units, group.follows))
        return group.units if divides else 0

    def _root(self, piece: Piece) -> Piece:
        while (parent := self._parent.get(piece, piece)) != piece:
            piece = parent
        return piece

    def _group(self, piece: Piece) -> _Group:
        return self._groups.setdefault(self._root(piece), _Group())

    def _link(self, pieces: Iterable[Piece]) -> None:
        first, *others = pieces
        for other in others:
            ours, theirs = self._root(first), self._root(other)
            if ours == theirs:
                continue
            a, b = self._group(ours), self._group(theirs)
            self._parent[theirs] = ours
            self._groups[ours] = _Group(
                a.grains + b.grains,
                a.whole or b.whole,
                a.made + b.made,
                max(a.read, b.read),
                a.attends or b.attends,
                a.follows + b.follows,
                a.even or b.even,
                a.scans or b.scans,
                a.normed or b.normed,
            )
            del self._groups[theirs]

    def _keep_whole(self, *values: Value | None) -> None:
        for value in values:
            for piece in self._pieces.of(value) if value is not None else ():
                self._group(piece).whole = True

    def _grains(self, value: Value, count: int) -> Piece:
        """Of a value that is one piece of `count` units; one of several pieces is kept whole."""
        pieces = self._pieces.of(value)
        if len(pieces) > 1:
            self._keep_whole(value)
        self._group(pieces[0]).grains.append(count)
        return pieces[0]

    def _take(self, op: Instruction) -> None:
        match op:
            case Linear():
                self._take_linear(op)
            case LinearHeads(x=x, output=output, weights=weights):
                self._link([self._grains(x, len(weights)), self._grains(output, len(weights))])
            case Attend():
                self._take_attend(op)
            case Keep(k=k, v=v, cache_layer=layer):
                kept = self._layers[layer]
                assert isinstance(kept, KvLayer)
                self._take_heads([self._cache(layer, kept.kv_heads)], kept.kv_heads, [k, v], kept.kv_heads)
            case SelectiveScan(x=x, output=output, steps=steps, heads=heads, groups=groups):
                of_heads = [self._grains(value, heads) for value in (x, output, steps)]
                self._take_heads(of_heads, heads, [op.b, op.c], groups)
                self._group(of_heads[0]).scans = True
            case DeltaRule(v=v, output=output, steps=steps, rates=rates, heads=heads, key_heads=key_heads):
                turns = heads // key_heads if op.alternating else heads
                of_heads = [self._grains(value, turns) for value in (v, output, steps, rates)]
                if op.alternating:
                    self._link(of_heads)
                    self._keep_whole(op.q, op.k)
                else:
                    self._take_heads(of_heads, heads, [op.q, op.k], key_heads)
            case _ if values := alike(op):
                for same in zip(*(self._pieces.of(value) for value in values), strict=True):
                    self._link(same)
                if isinstance(op, RmsNorm | Rope):
                    self._take_heads_of(op.x, op.group if isinstance(op, RmsNorm) else op.head_size)
                else:
                    for piece in self._pieces.of(values[0]):
                        self._group(piece).grains.append(piece[2] - piece[1])
                if isinstance(op, ScaleRows):
                    self._keep_whole(op.by)
            case _:
                self._keep_whole(*reads_of(op))

    def _cache(self, layer: int, heads: int) -> Piece:
        self._group((-1, layer, 0)).grains.append(heads)
        return (-1, layer, 0)

    def _take_norm(self, op: RmsNorm) -> None:
        """Of whole rows. What a state made is put together for it: that is less than running the layer everywhere."""
        pieces = self._pieces.of(op.x)
        group = self._group(pieces[0])
        if len(pieces) > 1 or not group.scans:
            self._keep_whole(op.x)
        elif group.divides(self._ranks):
            self._group(self._pieces.of(op.output)[0]).normed = True

    def _take_heads_of(self, x: Value, size: int) -> None:
        """Columns that belong together, `size` at a time."""
        for piece in self._pieces.of(x):
            begin, end = piece[1] - x.offset, piece[2] - x.offset
            if begin % size or end % size:
                self._group(piece).whole = True
            else:
                self._group(piece).grains.append((end - begin) // size)

    def _take_linear(self, op: Linear) -> None:
        pieces = self._pieces.of(op.x)
        if len(pieces) > 1:
            self._keep_whole(op.x)
        block = max(FORMATS[self._described(name).format].block_elements for name in op.weights)
        self._largest_block = max(self._largest_block, block)
        width = op.x.width
        self._group(pieces[0]).grains.append(width // block if width % block == 0 else 1)
        for piece in self._pieces.of(op.output):
            group = self._group(piece)
            group.made += piece[2] - piece[1]
            group.read = max(group.read, width)

    def _take_attend(self, op: Attend) -> None:
        of_heads = [self._grains(value, op.heads) for value in (op.q, op.output)]
        if op.cache_layer is not None:
            of_heads.append(self._cache(op.cache_layer, op.heads))
        few = [] if op.k is None or op.v is None or op.latent else [op.k, op.v]
        if op.latent:
            self._keep_whole(op.k, op.v)
        self._take_heads(of_heads, op.heads, few, 0 if op.latent else op.kv_heads)
        self._group(of_heads[0]).attends = op

    def _take_heads(self, of_heads: list[Piece], heads: int, few: list[Value], count: int) -> None:
        """Heads that share each of the `count` heads of `few`; 0: all share all."""
        self._link(of_heads)
        if not count:
            return
        of_few = [self._grains(value, count) for value in few]
        if of_few:
            self._link(of_few)
        if count >= self._ranks:
            self._link([of_heads[0], *of_few[:1]])
            self._group(of_heads[0]).grains.append(count)
        elif count > 1:
            # A rank's heads must all share the same one.
            self._group(of_heads[0]).even = True
            if self._ranks % count:
                self._group(of_heads[0]).grains.append(1)
        for piece in of_few[:1] if count < self._ranks else ():
            self._group(piece).follows += (of_heads[0],)
