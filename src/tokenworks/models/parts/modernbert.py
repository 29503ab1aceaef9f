"""The body of ModernBERT (arXiv 2412.13663): a decoder's layers (norms before the parts, rotary positions, gated MLPs)
in which every token sees its whole input, or in most layers those near it."""

from dataclasses import dataclass

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import Shapes, linear, shapes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ModernBertBody:
    """Weights: embed, norm, final_norm, and for each layer q, k, v, o, gate, up, down and two norms, but for the first
    layer's attention_norm."""

    vocabulary: int
    width: int
    heads: int
    mlp: Mlp
    windows: tuple[int, ...]
    """For each layer: a token sees those less than so many places before and behind it; 0: all."""
    biased: frozenset[str]
    """Which of q, k, v, o have a bias."""
    norm_biased: bool
    norm_epsilon: float

    def write(self, b: ProgramBuilder) -> Value:
        x = self.norm(b, b.embed("embed", self.width), "norm")
        for number, window in enumerate(self.windows):
            name = f"layers.{number}."
            normed = self.norm(b, x, name + "attention_norm") if number else x
            x = b.add(x, self._attention(b, name, normed, window))
            x = b.add(x, self.mlp.write(b, name, self.norm(b, x, name + "mlp_norm")))
        return self.norm(b, x, "final_norm")

    def _attention(self, b: ProgramBuilder, name: str, x: Value, window: int) -> Value:
        width, size = self.width, self.width // self.heads
        rope = "rope.local" if window else "rope.global"
        qkv = linear(b, name, x, ("q", "k", "v"), 3 * width, self.biased)
        attended = b.attend(
            b.rope(qkv.columns(0, width), size, rope),
            b.rope(qkv.columns(width, width), size, rope),
            qkv.columns(2 * width, width),
            heads=self.heads,
            kv_heads=self.heads,
            head_size=size,
            scale=size**-0.5,
            window=window,
            cached=False,
        )
        return linear(b, name, attended, ("o",), width, self.biased)

    def norm(self, b: ProgramBuilder, x: Value, name: str) -> Value:
        return b.layernorm(x, name, name + ".bias" if self.norm_biased else None, self.norm_epsilon)

    def norm_shapes(self, name: str) -> Shapes:
        return dict.fromkeys((name, name + ".bias") if self.norm_biased else (name,), (self.width,))

    def shapes(self) -> Shapes:
        shapes: Shapes = {"embed": (self.vocabulary, self.width)}
        for name in ("norm", "final_norm"):
            shapes |= self.norm_shapes(name)
        maps = shapes_of(dict.fromkeys("qkvo", (self.width, self.width)), self.biased)
        for number in range(len(self.windows)):
            layer = maps | self.mlp.shapes(self.width) | self.norm_shapes("mlp_norm")
            if number:
                layer |= self.norm_shapes("attention_norm")
            shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
        return shapes
