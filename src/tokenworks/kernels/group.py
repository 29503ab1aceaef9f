"""What a rank says to the others while a step runs."""

from typing import Any, Protocol, TypeVar

Array = TypeVar("Array", contravariant=True)


class Group(Protocol[Array]):
    """Ranks that run the same steps together, each a process (or a thread) that calls the same in the same order.
    Arrays are [rows, columns], of as many rows everywhere. What a lost rank makes of a call is an exception or an end
    of the process, never a wait for ever."""

    rank: int
    ranks: int

    def all_reduce(self, x: Array) -> None:
        """In place: the sum of all ranks' x."""

    def all_gather(self, x: Array, out: Array, widths: tuple[int, ...]) -> None:
        """out: the columns of all ranks' x side by side; rank r's are widths[r]."""

    def broadcast(self, x: Array) -> None:
        """In place: rank 0's x."""


AnyGroup = Group[Any]
