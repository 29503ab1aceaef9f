"""The gated feed-forward network (GLU variants, arXiv 2002.05202): down(activation(gate(x)) * up(x))."""

from dataclasses import dataclass

from tokenworks.kernels.program import Activation, ProgramBuilder, Value
from tokenworks.models.parts import Shapes, linear, shapes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Weights: gate, up, down."""

    width: int
    """Of gate and up."""
    activation: Activation
    biased: frozenset[str] = frozenset()
    """Which of gate, up, down have a bias."""

    def write(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        both = linear(b, name, x, ("gate", "up"), 2 * self.width, self.biased)
        gated = b.gate(both.columns(0, self.width), both.columns(self.width, self.width), self.activation)
        return linear(b, name, gated, ("down",), x.width, self.biased)

    def shapes(self, width: int) -> Shapes:
        maps = {"gate": (self.width, width), "up": (self.width, width), "down": (width, self.width)}
        return shapes_of(maps, self.biased)
