"""Where the ranks that run one model together bring their numbers together: the same instructions in the same order in
the program of each (kernels/shard writes them)."""

from dataclasses import dataclass

from tokenworks.kernels.program.value import Value


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Every rank's x becomes the sum of all ranks'. In place: output is x."""

    output: Value
    x: Value


@dataclass(frozen=True, slots=True)
class AllGather:
    """Every rank gets the columns of all, side by side: widths[r] of rank r, whose own are x."""

    output: Value
    x: Value
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Every rank's x, [T, width], becomes the first rank's. In place: output is x."""

    output: Value
    x: Value
