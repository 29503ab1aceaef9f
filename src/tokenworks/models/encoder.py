"""One step of an encoder, and the weights it needs: a body that makes a row for each token, and a head that makes one
result for each input of them: a vector, or a score."""

from dataclasses import dataclass
from typing import Literal

from tokenworks.kernels.program import Activation, Program, ProgramBuilder, Value
from tokenworks.models.config import EncoderConfig
from tokenworks.models.parts.part import Shapes


def encoder_program(config: EncoderConfig) -> Program:
    """Tokens of the step's inputs -> vectors [sequences, width], or scores [sequences, 1]."""
    b = ProgramBuilder()
    return b.finish(config.head.write(b, config.body.write(b)))


def encoder_shapes(config: EncoderConfig) -> Shapes:
    """Canonical name -> shape of every weight: exactly what the program reads, but for rotary frequencies."""
    return config.body.shapes() | config.head.shapes(config.width)


@dataclass(frozen=True, slots=True)
class VectorHead:
    """The mean of an input's rows, or the first; then / l2 norm if `normalise`."""

    pooling: Literal["mean", "first"]
    normalise: bool

    def write(self, b: ProgramBuilder, x: Value) -> Value:
        return b.pool(x, self.pooling, normalise=self.normalise)

    def shapes(self, width: int) -> Shapes:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreHead:
    """A pooled row through a map, an activation, and a norm where there is one, to one score.

    Weights: dense, classifier, and their biases, dense_norm.
    """

    pooling: Literal["mean", "first"]
    activation: Activation | Literal["tanh"]
    dense_biased: bool
    norm: Literal["", "weight", "weight and bias"]
    norm_epsilon: float
    sigmoid: bool
    """The score is brought between 0 and 1, for which the program has no operation: by whoever runs it."""

    def write(self, b: ProgramBuilder, x: Value) -> Value:
        pooled = b.pool(x, self.pooling, normalise=False)
        made = b.linear(pooled, ("dense",), pooled.width, biases=("dense.bias",) if self.dense_biased else None)
        made = b.softcap(made, 1.0) if self.activation == "tanh" else b.activate(made, self.activation)
        if self.norm:
            bias = "dense_norm.bias" if "bias" in self.norm else None
            made = b.layernorm(made, "dense_norm", bias, self.norm_epsilon)
        return b.linear(made, ("classifier",), 1, biases=("classifier.bias",))

    def shapes(self, width: int) -> Shapes:
        shapes: Shapes = {"dense": (width, width), "classifier": (1, width), "classifier.bias": (1,)}
        if self.dense_biased:
            shapes["dense.bias"] = (width,)
        if self.norm:
            shapes["dense_norm"] = (width,)
        if "bias" in self.norm:
            shapes["dense_norm.bias"] = (width,)
        return shapes
