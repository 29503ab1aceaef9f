"""Mamba-2 (arXiv 2405.21060): tokens are mixed through a state of fixed size, which each decays, adds to and reads.

One map makes everything: a gate z, then x, B, C, which go through a short convolution, then a time step for each head.
What the scan makes is gated and RMS-normed, group by group of heads.
"""

from dataclasses import dataclass
from typing import Literal

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes, linear, shapes_of

Normed = Literal["behind gate", "before gate", "no"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """Weights: in, out; conv; decay (the paper's A, negative), step_bias, skip (its D); scan_weight, the norm's."""

    heads: int
    head_size: int
    groups: int
    """Heads share B and C in so many groups."""
    state_size: int
    kernel: int
    """Tokens that the short convolution sees."""
    norm_epsilon: float
    step_range: tuple[float, float] = (0.0, float("inf"))
    """Time steps are brought into it."""
    biased: frozenset[str] = frozenset()
    """Which of in, out, conv have a bias."""
    normed: Normed = "behind gate"
    """Where what the scan makes is normed."""
    factors: tuple[float, ...] = ()
    """Of gate, x, B, C and time steps as the map makes them; empty: ones."""

    @property
    def _inner(self) -> int:
        return self.heads * self.head_size

    @property
    def _convolved(self) -> int:
        return self._inner + 2 * self.groups * self.state_size

    keeps = True

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        inner, shared = self._inner, self.groups * self.state_size
        made = linear(b, name, x, ("in",), inner + self._convolved + self.heads, self.biased)
        self._scale(b, made)
        bias = name + "conv.bias" if "conv" in self.biased else None
        xbc = b.short_convolution(made.columns(inner, self._convolved), name + "conv", bias, self.kernel)
        y = b.selective_scan(
            xbc.columns(0, inner),
            xbc.columns(inner, shared),
            xbc.columns(inner + shared, shared),
            made.columns(inner + self._convolved, self.heads),
            decay=name + "decay",
            step_bias=name + "step_bias",
            skip=name + "skip",
            heads=self.heads,
            groups=self.groups,
            step_range=self.step_range,
        )
        if self.normed == "before gate":
            y = self._norm(b, name, y)
        gated = b.gate(made.columns(0, inner), y, "silu")
        return self._norm(b, name, gated) if self.normed == "behind gate" else gated

    def _norm(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        return b.rmsnorm(x, name + "scan_weight", self.norm_epsilon, group=x.width // self.groups, wide=True)

    def _scale(self, b: ProgramBuilder, made: Value) -> None:
        shared, at = self.groups * self.state_size, 0
        widths = (self._inner, self._inner, shared, shared, self.heads)
        for factor, width in zip(self.factors or (1.0,) * 5, widths, strict=True):
            if factor != 1.0:
                b.scale(made.columns(at, width), factor, into=made.columns(at, width))
            at += width

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        return linear(b, name, mixed, ("out",), width, self.biased)

    def shapes(self, width: int) -> Shapes:
        maps = {"in": (self._inner + self._convolved + self.heads, width), "out": (width, self._inner)}
        shapes = shapes_of(maps, self.biased - {"conv"}) | {"conv": (self._convolved, self.kernel)}
        if "conv" in self.biased:
            shapes["conv.bias"] = (self._convolved,)
        if self.normed != "no":
            shapes["scan_weight"] = (self._inner,)
        return shapes | dict.fromkeys(("decay", "step_bias", "skip"), (self.heads,))
