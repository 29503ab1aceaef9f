"""Mamba-2 (arXiv 2405.21060): tokens are mixed through a state of fixed size, which each decays, adds to and reads.

One map makes everything: a gate z, then x, B, C, which go through a short convolution, then a time step for each head.
What the scan makes is gated and RMS-normed, group by group of heads.
"""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts import Shapes, linear, shapes_of


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

    @property
    def _inner(self) -> int:
        return self.heads * self.head_size

    @property
    def _convolved(self) -> int:
        return self._inner + 2 * self.groups * self.state_size

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        inner, shared = self._inner, self.groups * self.state_size
        made = linear(b, name, x, ("in",), inner + self._convolved + self.heads, self.biased)
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
        gated = b.gate(made.columns(0, inner), y, "silu")
        return b.rmsnorm(gated, name + "scan_weight", self.norm_epsilon, group=inner // self.groups, wide=True)

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        return linear(b, name, mixed, ("out",), width, self.biased)

    def shapes(self, width: int) -> Shapes:
        maps = {"in": (self._inner + self._convolved + self.heads, width), "out": (width, self._inner)}
        shapes = shapes_of(maps, self.biased - {"conv"}) | {"conv": (self._convolved, self.kernel)}
        if "conv" in self.biased:
            shapes["conv.bias"] = (self._convolved,)
        return shapes | dict.fromkeys(("decay", "step_bias", "skip"), (self.heads,)) | {"scan_weight": (self._inner,)}
