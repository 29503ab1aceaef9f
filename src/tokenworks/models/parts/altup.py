"""Alternating updates (AltUp, arXiv 2301.13310): several residual streams, of which a layer computes one. It predicts
what all of them become, runs on the first, and corrects the others by how far the prediction was off."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes

LEAST_SQUARE = 1e-5
"""Of a stream's numbers, on average, when its magnitude is matched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AltUp:
    """Weights: streams.N.in, streams.N.out of all streams but the first; of a layer altup_norm, altup_router,
    altup_predict, altup_correct, and altup_scale."""

    streams: int
    norm_epsilon: float
    scaled: bool
    """The corrected first stream is multiplied by altup_scale before the layer's per-layer vector looks at it."""

    def spread(self, b: ProgramBuilder, x: Value) -> None:
        """x [T, streams * width] has its first stream; the others are made of it."""
        width = x.width // self.streams
        first = x.columns(0, width)
        others = x.columns(width, x.width - width)
        b.linear(first, [f"streams.{n}.in" for n in range(self.streams - 1)], others.width, into=others)
        for n in range(1, self.streams):
            stream = x.columns(n * width, width)
            b.match_magnitude(stream, first, least=LEAST_SQUARE, into=stream)

    def gather(self, b: ProgramBuilder, x: Value) -> Value:
        """[R, streams * width] -> [R, width]"""
        width = x.width // self.streams
        first = total = x.columns(0, width)
        for n in range(1, self.streams):
            made = b.linear(x.columns(n * width, width), (f"streams.{n - 1}.out",), width)
            total = b.add(total, b.match_magnitude(made, first, least=LEAST_SQUARE, into=made))
        return b.scale(total, 1 / self.streams)

    def predict(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        """All streams, as the layer expects them to be."""
        seen = self._looked_at(b, name, x.columns(0, x.width // self.streams))
        coefficients = b.linear(seen, (name + "altup_predict",), self.streams**2)
        return b.add(b.mix_streams(x, coefficients, self.streams), x)

    def correct(self, b: ProgramBuilder, name: str, predicted: Value, made: Value) -> Value:
        """All streams, now that the layer has `made` the first."""
        coefficients = b.linear(self._looked_at(b, name, made), (name + "altup_correct",), self.streams)
        error = b.add(made, b.scale(predicted.columns(0, made.width), -1.0))
        return b.add(b.mix_streams(error, coefficients, 1, offset=1.0), predicted)

    def first(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        """The stream that a per-layer vector's gate sees, of all [R, streams * width]."""
        active = x.columns(0, x.width // self.streams)
        return b.multiply(active, name + "altup_scale") if self.scaled else active

    def join(self, b: ProgramBuilder, x: Value, made: Value) -> Value:
        """What such a vector makes joins every stream but the first."""
        for n in range(1, self.streams):
            stream = x.columns(n * made.width, made.width)
            b.add(stream, made, into=stream)
        return x

    def _looked_at(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        """[R, streams], between -1 and 1."""
        normed = b.rmsnorm(x, name + "altup_norm", self.norm_epsilon)
        return b.softcap(b.scale(b.linear(normed, (name + "altup_router",), self.streams), 1 / x.width), 1.0)

    def shapes(self, width: int) -> Shapes:
        """Of the model."""
        sides = [f"streams.{n}.{side}" for n in range(self.streams - 1) for side in ("in", "out")]
        return dict.fromkeys(sides, (width, width))

    def layer_shapes(self, width: int) -> Shapes:
        """Within each layer."""
        shapes: Shapes = {
            "altup_norm": (width,),
            "altup_router": (self.streams, width),
            "altup_predict": (self.streams**2, self.streams),
            "altup_correct": (self.streams, self.streams),
        }
        return shapes | ({"altup_scale": (width,)} if self.scaled else {})
