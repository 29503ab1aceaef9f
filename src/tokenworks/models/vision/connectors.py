"""From an encoder's rows to a decoder's embeddings. Weights: "vision.connector." and a word of its own."""

from dataclasses import dataclass
from typing import Literal

from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.models.parts.part import Shapes


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Neighbours side by side, projected: Idefics 3's (arXiv 2408.12637). Weight: proj."""

    def write(self, b: ProgramBuilder, name: str, x: Value, count: int, width: int, into: Value | None) -> Value:
        return b.linear(b.merge(x, count, "concatenate"), (name + "proj",), width, into=into)

    def shapes(self, encoder_width: int, count: int, width: int) -> Shapes:
        return {"proj": (width, count * encoder_width)}


@dataclass(frozen=True, slots=True)
class Pool:
    """The mean of neighbours, normed, projected: Gemma 3's (arXiv 2503.19786). Weights: norm, proj."""

    epsilon: float

    def write(self, b: ProgramBuilder, name: str, x: Value, count: int, width: int, into: Value | None) -> Value:
        pooled = b.rmsnorm(b.merge(x, count, "mean"), name + "norm", self.epsilon)
        return b.linear(pooled, (name + "proj",), width, into=into)

    def shapes(self, encoder_width: int, count: int, width: int) -> Shapes:
        return {"norm": (encoder_width,), "proj": (width, encoder_width)}


@dataclass(frozen=True, slots=True)
class Merger:
    """Neighbours side by side through two layers: Qwen's (arXiv 2502.13923). Weights: norm, inner, proj."""

    norm: Literal["layer", "rms"]
    epsilon: float
    norms_merged: bool = False
    """The norm is over neighbours together, not over each alone."""

    def write(self, b: ProgramBuilder, name: str, x: Value, count: int, width: int, into: Value | None) -> Value:
        if not self.norms_merged:
            x = self._norm(b, name, x)
        x = b.merge(x, count, "concatenate")
        if self.norms_merged:
            x = self._norm(b, name, x)
        inner = b.activate(b.linear(x, (name + "inner",), x.width, biases=(name + "inner.bias",)), "gelu")
        return b.linear(inner, (name + "proj",), width, biases=(name + "proj.bias",), into=into)

    def _norm(self, b: ProgramBuilder, name: str, x: Value) -> Value:
        if self.norm == "rms":
            return b.rmsnorm(x, name + "norm", self.epsilon)
        return b.layernorm(x, name + "norm", name + "norm.bias", self.epsilon)

    def shapes(self, encoder_width: int, count: int, width: int) -> Shapes:
        merged = count * encoder_width
        normed = (merged if self.norms_merged else encoder_width,)
        norms: Shapes = {"norm": normed} if self.norm == "rms" else {"norm": normed, "norm.bias": normed}
        return {
            **norms,
            "inner": (merged, merged),
            "inner.bias": (merged,),
            "proj": (width, merged),
            "proj.bias": (width,),
        }
