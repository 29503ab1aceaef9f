"""What instructions read and write, and the functions of an element."""

from dataclasses import dataclass, replace
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "gelu", "gelu_quick", "relu2", "sigmoid", "none"]


@dataclass(frozen=True, slots=True)
class Value:
    """Columns [offset, offset + width) of buffer number `buffer`, which is `stride` wide."""

    buffer: int
    offset: int
    width: int
    stride: int

    def columns(self, start: int, width: int) -> "Value":
        """A view of some columns; no copy."""
        assert start >= 0 and start + width <= self.width
        return replace(self, offset=self.offset + start, width=width)
