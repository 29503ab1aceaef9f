"""The gated feed-forward network (GLU variants, arXiv 2002.05202): down(activation(gate(x)) * up(x)); or one without
gate: down(activation(up(x)))."""

from dataclasses import dataclass

from tokenworks.kernels.program import Activation, ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes, linear, shapes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """Weights: gate, up, down."""

    width: int
    """Of gate and up."""
    activation: Activation
    biased: frozenset[str] = frozenset()
    """Which of gate, up, down have a bias."""
    gated: bool = True
    deviations: float | None = None
    """Only what of the gate is so many standard deviations above its mean counts (kernels/program/streams.py:
    Sparsify); None: all of it."""
    gate_scale: float = 1.0
    output_scale: float = 1.0

    def write(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        if not self.gated:
            up = b.activate(linear(b, name, x, ("up",), self.width, self.biased), self.activation)
            return linear(b, name, up, ("down",), x.width, self.biased)
        both = linear(b, name, x, ("gate", "up"), 2 * self.width, self.biased)
        gate = both.columns(0, self.width)
        if self.gate_scale != 1.0:
            gate = b.scale(gate, self.gate_scale, into=gate)
        if self.deviations is not None:
            gate = b.sparsify(gate, self.deviations, into=gate)
        gated = b.gate(gate, both.columns(self.width, self.width), self.activation)
        made = linear(b, name, gated, ("down",), x.width, self.biased)
        return made if self.output_scale == 1.0 else b.scale(made, self.output_scale)

    def shapes(self, width: int) -> Shapes:
        maps = {"gate": (self.width, width), "up": (self.width, width), "down": (width, self.width)}
        return shapes_of(maps if self.gated else {m: maps[m] for m in ("up", "down")}, self.biased)
