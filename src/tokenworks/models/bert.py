"""The body of BERT (arXiv 1810.04805), and of RoBERTa (arXiv 1907.11692), which numbers positions otherwise.

Unlike in the decoders, norms come after each residual sum, positions are learned vectors, and every token sees its
whole input. A second text is told from the first by its token type.
"""

from dataclasses import dataclass

from tokenworks.kernels.program import Activation, ProgramBuilder, Value
from tokenworks.models.parts import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class BertBody:
    """Weights: embed, positions, token_types, norm, and for each layer q, k, v, o, up, down and two norms."""

    vocabulary: int
    positions: int
    token_types: int
    width: int
    heads: int
    mlp_width: int
    layers: int
    activation: Activation
    norm_epsilon: float

    def write(self, b: ProgramBuilder) -> Value:
        token = b.embed("embed", self.width)
        position = b.embed("positions", self.width, index="position")
        kind = b.embed("token_types", self.width, index="axis" if self.token_types > 1 else "zero")
        x = self._norm(b, b.add(b.add(token, kind), position), "norm")
        for number in range(self.layers):
            name = f"layers.{number}."
            x = self._norm(b, b.add(self._attention(b, name, x), x), name + "attention_norm")
            x = self._norm(b, b.add(self._mlp(b, name, x), x), name + "mlp_norm")
        return x

    def _attention(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        maps, width = ("q", "k", "v"), self.width
        qkv = b.linear(x, [name + m for m in maps], 3 * width, biases=[f"{name}{m}.bias" for m in maps])
        attended = b.attend(
            qkv.columns(0, width),
            qkv.columns(width, width),
            qkv.columns(2 * width, width),
            heads=self.heads,
            kv_heads=self.heads,
            head_size=width // self.heads,
            scale=(width // self.heads) ** -0.5,
            cached=False,
        )
        return b.linear(attended, (name + "o",), width, biases=(name + "o.bias",))

    def _mlp(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        up = b.linear(x, (name + "up",), self.mlp_width, biases=(name + "up.bias",))
        return b.linear(b.activate(up, self.activation), (name + "down",), self.width, biases=(name + "down.bias",))

    def _norm(self, b: ProgramBuilder, x: Value, name: str) -> Value:
        return b.layernorm(x, name, name + ".bias", self.norm_epsilon)

    def shapes(self) -> Shapes:
        width, mlp_width = self.width, self.mlp_width
        maps = dict.fromkeys("qkvo", (width, width)) | {"up": (mlp_width, width), "down": (width, mlp_width)}
        layer: Shapes = {
            **maps,
            **{f"{m}.bias": (shape[0],) for m, shape in maps.items()},
            **{norm + end: (width,) for norm in ("attention_norm", "mlp_norm") for end in ("", ".bias")},
        }
        shapes: Shapes = {
            "embed": (self.vocabulary, width),
            "positions": (self.positions, width),
            "token_types": (self.token_types, width),
            "norm": (width,),
            "norm.bias": (width,),
        }
        for number in range(self.layers):
            shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
        return shapes
