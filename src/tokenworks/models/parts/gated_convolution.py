"""Gated short convolutions (LFM2, arXiv 2511.23404): a token sees the few before it, weighed column by column; a gate
chooses what goes into the convolution, and another what comes out."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes, linear, shapes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedConvolution:
    """Weights: in, for the gate before, the gate behind and what is convolved; conv; out."""

    kernel: int
    """Tokens that the convolution sees."""
    biased: frozenset[str] = frozenset()
    """Which of in, conv, out have a bias."""

    keeps = True

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        width = x.width
        made = linear(b, name, x, ("in",), 3 * width, self.biased)
        before, behind, seen = (made.columns(at * width, width) for at in range(3))
        bias = name + "conv.bias" if "conv" in self.biased else None
        entering = b.gate(before, seen, "none")
        convolved = b.short_convolution(entering, name + "conv", bias, self.kernel, activated=False)
        return b.gate(behind, convolved, "none")

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        return linear(b, name, mixed, ("out",), width, self.biased)

    def shapes(self, width: int) -> Shapes:
        shapes = shapes_of({"in": (3 * width, width), "out": (width, width)}, self.biased - {"conv"})
        shapes["conv"] = (width, self.kernel)
        return shapes | ({"conv.bias": (width,)} if "conv" in self.biased else {})
