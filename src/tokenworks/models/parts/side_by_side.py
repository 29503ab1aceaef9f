"""Mixers of one layer that see the same input, and whose results are added: attention beside a state-space model
(Falcon-H1, arXiv 2507.22448)."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Mixer, Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    mixer: Mixer
    width: int
    """Of what it mixes."""
    input_scale: float = 1.0
    output_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """Weights: those of all mixers, which have no names in common."""

    sides: tuple[Side, ...]

    keeps = True

    def mix(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        mixed, at = b.buffer(sum(side.width for side in self.sides)), 0
        for side in self.sides:
            seen = x if side.input_scale == 1.0 else b.scale(x, side.input_scale)
            b.scale(side.mixer.mix(b, name, seen), 1.0, into=mixed.columns(at, side.width))
            at += side.width
        return mixed

    def project(self, b: ProgramBuilder, name: str, mixed: Value, width: int) -> Value:
        made, at = [], 0
        for side in self.sides:
            of_side = side.mixer.project(b, name, mixed.columns(at, side.width), width)
            made.append(of_side if side.output_scale == 1.0 else b.scale(of_side, side.output_scale))
            at += side.width
        total = made[0]
        for each in made[1:]:
            total = b.add(total, each)
        return total

    def shapes(self, width: int) -> Shapes:
        return {name: shape for side in self.sides for name, shape in side.mixer.shapes(width).items()}
