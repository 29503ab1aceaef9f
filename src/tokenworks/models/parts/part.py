"""What the layers of decoders are made of: a part writes its share of a program and says which weights it needs.

`name` is the layer's, "layers.N."; a part's weights are that and a word of its own. A file for each kind of part, to
be read beside its paper.
"""

from collections.abc import Mapping
from typing import Protocol

from tokenworks.kernels.program import ProgramBuilder, Value

Shapes = dict[str, tuple[int, ...]]
"""Of weights, by name within the layer; a linear map's is [out_features, in_features]."""


class Mixer(Protocol):
    """The part through which a token sees other tokens."""

    @property
    def keeps(self) -> bool:
        """Whether later steps, or other layers, read what it writes to the cache."""

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        """Normed [T, width] -> [T, whatever `project` takes]: behind it no row looks at another."""

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        """Back to the width of the residual stream, row by row."""

    def shapes(self, width: int) -> Shapes:
        """`width`: of the residual stream."""


class FeedForward(Protocol):
    """The part that works on each token alone."""

    def write(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        """Normed [R, width] -> [R, width]."""

    def shapes(self, width: int) -> Shapes:
        """`width`: of the residual stream."""


def linear(b: ProgramBuilder, name: str, x: Value, maps: tuple[str, ...], width: int, biased: frozenset[str]) -> Value:
    """Several maps of one input, side by side; `width` is the sum of their outputs, `biased` those with a bias."""
    biases = [f"{name}{m}.bias" if m in biased else None for m in maps]
    return b.linear(x, [name + m for m in maps], width, biases=biases if any(biases) else None)


def shapes_of(maps: Mapping[str, tuple[int, int]], biased: frozenset[str]) -> Shapes:
    """Of linear maps and their biases."""
    return {**maps, **{f"{m}.bias": (maps[m][0],) for m in maps if m in biased}}
