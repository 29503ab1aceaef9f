"""Per-layer embeddings (Gemma 3n and 4): each token has a short vector of its own for every layer, which comes from a
second, large table and from its embedding, and joins the stream where the layer's state opens a gate for it."""

from dataclasses import dataclass

from tokenworks.kernels.program import Activation, ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayer:
    """Weights: per_layer.embed, per_layer.map, per_layer.norm; of a layer per_layer_gate, per_layer_out,
    per_layer_norm."""

    vocabulary: int
    """Rows of the table; tokens beyond have its first."""
    size: int
    """Of a layer's vector."""
    layers: int
    activation: Activation
    norm_epsilon: float

    def vectors(self, b: ProgramBuilder, x: Value) -> Value:
        """Embeddings [T, width] -> [T, layers * size]."""
        all_sizes = self.layers * self.size
        table = b.embed("per_layer.embed", all_sizes, index="known_token", scale=self.size**0.5)
        # Before its norm the reference divides the map's result by sqrt(width): here the epsilon is larger instead.
        made = b.linear(x, ("per_layer.map",), all_sizes)
        made = b.rmsnorm(made, "per_layer.norm", self.norm_epsilon * x.width, group=self.size, into=made)
        return b.scale(b.add(made, table), 2**-0.5)

    def write(self, b: ProgramBuilder, name: str, x: Value, vector: Value) -> Value:
        """What joins the stream, from x [R, width] and the layer's vectors [R, size]."""
        gate = b.linear(x, (name + "per_layer_gate",), self.size)
        made = b.linear(b.gate(gate, vector, self.activation), (name + "per_layer_out",), x.width)
        return b.rmsnorm(made, name + "per_layer_norm", self.norm_epsilon)

    def shapes(self, width: int) -> Shapes:
        """Of the model."""
        return {
            "per_layer.embed": (self.vocabulary, self.layers * self.size),
            "per_layer.map": (self.layers * self.size, width),
            "per_layer.norm": (self.size,),
        }

    def layer_shapes(self, width: int) -> Shapes:
        """Within each layer."""
        return {
            "per_layer_gate": (self.size, width),
            "per_layer_out": (width, self.size),
            "per_layer_norm": (width,),
        }
