"""The body of BERT (arXiv 1810.04805), of RoBERTa (arXiv 1907.11692), which numbers positions otherwise, and of Nomic
BERT (arXiv 2402.01613), which turns q and k by them.

Unlike in the decoders, norms come after each residual sum, positions are learned vectors, and every token sees its
whole input. A second text is told from the first by its token type.
"""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import Shapes, linear, shapes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class BertBody:
    """Weights: embed, positions, token_types, norm, and for each layer q, k, v, o, the network's and two norms."""

    vocabulary: int
    positions: int
    """How many there are vectors of; 0: none, but rotary ones, "global"."""
    token_types: int
    width: int
    heads: int
    mlp: Mlp
    layers: int
    norm_epsilon: float
    biased: frozenset[str] = frozenset("qkvo")
    """Which of q, k, v, o have a bias."""

    def write(self, b: ProgramBuilder) -> Value:
        token = b.embed("embed", self.width)
        if self.positions:
            token = b.add(token, b.embed("positions", self.width, index="position"))
        kind = b.embed("token_types", self.width, index="axis" if self.token_types > 1 else "zero")
        x = self._norm(b, b.add(token, kind), "norm")
        for number in range(self.layers):
            name = f"layers.{number}."
            x = self._norm(b, b.add(self._attention(b, name, x), x), name + "attention_norm")
            x = self._norm(b, b.add(self.mlp.write(b, name, x), x), name + "mlp_norm")
        return x

    def _attention(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        width = self.width
        qkv = linear(b, name, x, ("q", "k", "v"), 3 * width, self.biased)
        q, k = qkv.columns(0, width), qkv.columns(width, width)
        if not self.positions:
            q, k = (b.rope(each, width // self.heads, "rope.global") for each in (q, k))
        attended = b.attend(
            q,
            k,
            qkv.columns(2 * width, width),
            heads=self.heads,
            kv_heads=self.heads,
            head_size=width // self.heads,
            scale=(width // self.heads) ** -0.5,
            cached=False,
        )
        return linear(b, name, attended, ("o",), width, self.biased)

    def _norm(self, b: ProgramBuilder, x: Value, name: str) -> Value:
        return b.layernorm(x, name, name + ".bias", self.norm_epsilon)

    def shapes(self) -> Shapes:
        width = self.width
        layer: Shapes = {
            **shapes_of(dict.fromkeys("qkvo", (width, width)), self.biased),
            **self.mlp.shapes(width),
            **{norm + end: (width,) for norm in ("attention_norm", "mlp_norm") for end in ("", ".bias")},
        }
        shapes: Shapes = {
            "embed": (self.vocabulary, width),
            **({"positions": (self.positions, width)} if self.positions else {}),
            "token_types": (self.token_types, width),
            "norm": (width,),
            "norm.bias": (width,),
        }
        for number in range(self.layers):
            shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
        return shapes
