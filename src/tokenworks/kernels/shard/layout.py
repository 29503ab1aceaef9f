"""Where a rank keeps its part of a program's values."""

from collections.abc import Iterable

from tokenworks.kernels.flow import written_by
from tokenworks.kernels.program import (
    Attend,
    DeltaRule,
    Instruction,
    Linear,
    LinearHeads,
    Program,
    SelectiveScan,
    Value,
)
from tokenworks.kernels.shard.pieces import Described, Groups, Piece, Pieces, alike, share

Range = tuple[int, int]


class Layout:
    """Of one rank. A piece that is divided takes only the rank's columns in its buffer, unless an instruction that
    makes all of it writes it."""

    def __init__(self, program: Program, described: Described, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self._pieces = Pieces(program, described)
        self._groups = Groups(program, self._pieces, described, ranks)
        self._shares = self._find_shares(program)
        self._moved: dict[int, int] = {}
        self._offsets: dict[Piece, int] = {}
        self.widths: list[int] = []
        """Of this rank's buffers, by number."""
        for buffer in range(len(program.buffer_widths)):
            at = 0
            for piece in self._pieces.of_buffer(buffer):
                self._offsets[piece] = at
                at += self._width(piece)
            self.widths.append(at)

    def _find_shares(self, program: Program) -> set[Piece]:
        """Pieces of which only a share is kept: all that write them make no more."""
        writers: dict[Piece, bool] = {}
        for op in program.instructions:
            output = written_by(op)
            for piece in self.pieces(output) if output is not None else ():
                writers[piece] = writers.get(piece, True) and self._makes_share(op, piece)
        return {piece for piece, makes in writers.items() if makes}

    def _makes_share(self, op: Instruction, piece: Piece) -> bool:
        if not self._groups.units(piece):
            return False
        match op:
            case Linear(x=x):
                return not self.units(x)
            case LinearHeads() | Attend() | SelectiveScan() | DeltaRule():
                return True
            case _:
                return bool(alike(op))

    def pieces(self, value: Value) -> list[Piece]:
        return self._pieces.of(value)

    def units(self, value: Value) -> int:
        """In how many units the value, or its first piece, is divided; 0: it is not."""
        return self._groups.units(self.pieces(value)[0])

    def units_of_cache(self, layer: int) -> int:
        return self._groups.units((-1, layer, 0))

    def is_share(self, piece: Piece) -> bool:
        """Only this rank's columns are kept."""
        return piece in self._shares

    def has_shares(self, values: Iterable[Value]) -> bool:
        return any(self.is_share(piece) for value in values for piece in self.pieces(value))

    def range(self, count: int, units: int) -> Range:
        """This rank's of `count` columns or heads, which are so many units."""
        begin, end = share(units, self.ranks, self.rank)
        return begin * (count // units), end * (count // units)

    def few(self, units: int, count: int) -> tuple[int, int]:
        """Of `count` heads that others in so many units share: the units they are divided in, and how many heads are
        this rank's."""
        few = min(units, count)
        begin, end = self.range(count, few)
        return few, end - begin

    def own_ranges(self, value: Value) -> list[Range]:
        """The value's columns that are this rank's: its share of what is divided, all of the rest."""
        return self._ranges(value, {piece: self._groups.units(piece) for piece in self.pieces(value)})

    def kept_ranges(self, value: Value) -> list[Range]:
        """The value's columns that this rank keeps."""
        pieces = self.pieces(value)
        return self._ranges(value, {p: self._groups.units(p) if self.is_share(p) else 0 for p in pieces})

    def _ranges(self, value: Value, units: dict[Piece, int]) -> list[Range]:
        found = []
        for piece, count in units.items():
            width, at = piece[2] - piece[1], piece[1] - value.offset
            begin, end = self.range(width, count) if count else (0, width)
            found.append((at + begin, at + end))
        return found

    def _width(self, piece: Piece) -> int:
        width = piece[2] - piece[1]
        begin, end = self.range(width, self._groups.units(piece)) if self.is_share(piece) else (0, width)
        return end - begin

    def stored(self, value: Value) -> Value:
        """What this rank keeps of it."""
        pieces = self.pieces(value)
        buffer = self._moved.get(value.buffer, value.buffer)
        width = sum(self._width(piece) for piece in pieces)
        return Value(buffer, self._offsets[pieces[0]], width, self.widths[buffer])

    def own(self, value: Value, units: int = 0) -> Value:
        """This rank's share of one piece, in units of its group's or as many as told."""
        (piece,) = self.pieces(value)
        stored = self.stored(value)
        if self.is_share(piece):
            return stored
        begin, end = self.range(value.width, units or self._groups.units(piece))
        return stored.columns(begin, end - begin)

    def move(self, buffer: int, to: int) -> None:
        """From here on the buffer's numbers lie in another one."""
        self._moved[buffer] = to

    def new(self, width: int) -> Value:
        """A buffer of this rank's own."""
        self.widths.append(width)
        return Value(len(self.widths) - 1, 0, width, width)
