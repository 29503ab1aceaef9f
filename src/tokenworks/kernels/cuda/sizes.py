"""Sizes of grids and tiles. Triton's own functions of these names can be used in kernels too, and pay for it with ten
microseconds a call."""

PROGRAMS = 264
"""Two for each multiprocessor of a Hopper chip: work is cut into so many at least, where it can be."""


def cdiv(count: int, size: int) -> int:
    """How many of `size` hold `count`."""
    return -(-count // size)


def power_of_2(least: int) -> int:
    """The smallest that is not below `least`, which is positive."""
    return 1 << (least - 1).bit_length()
