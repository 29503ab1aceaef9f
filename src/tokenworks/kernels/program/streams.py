"""Instructions of models that carry several residual streams beside each other (Alternating Updates, arXiv 2301.13310),
and of feed-forward networks that keep a few of their numbers only."""

from dataclasses import dataclass

from tokenworks.kernels.program.value import Value


@dataclass(frozen=True, slots=True)
class MixStreams:
    """x is `inputs` streams side by side, [T, inputs * w]; out stream i = sum over j of
    (coefficients[t, i * inputs + j] + offset) * x stream j. So many streams as there are coefficients for."""

    output: Value
    x: Value
    coefficients: Value
    inputs: int
    offset: float

    @property
    def outputs(self) -> int:
        return self.coefficients.width // self.inputs


@dataclass(frozen=True, slots=True)
class MatchMagnitude:
    """out[t] = x[t] * sqrt(mean(like[t]²)) / sqrt(max(mean(x[t]²), least))."""

    output: Value
    x: Value
    like: Value
    least: float


@dataclass(frozen=True, slots=True)
class Sparsify:
    """out[t] = max(0, x[t] - mean(x[t]) - deviations * the standard deviation of x[t]): of numbers as in a normal
    distribution a fixed share stays (Spark Transformer, arXiv 2506.06644)."""

    output: Value
    x: Value
    deviations: float
