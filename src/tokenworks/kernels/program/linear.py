"""Products with weights."""

from dataclasses import dataclass

from tokenworks.kernels.program.value import Value


@dataclass(frozen=True, slots=True)
class Linear:
    """out = x @ concat(weights).T + concat(biases); a weight is [out_features, in_features] in any format.

    Several weights stack along their output features, so that Q, K, V or gate, up run as one product.
    `biases` is empty, or has one name or None for each weight.
    """

    output: Value
    x: Value
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class LinearHeads:
    """Every head's columns of x [T, heads * ...] times a weight of its own, one for each head, [out, in], all of the
    same shape: out head = (x head's first `kept` columns as they are, the `in` others @ weight.T)."""

    output: Value
    x: Value
    weights: tuple[str, ...]
    kept: int

    @property
    def inputs(self) -> int:
        """Columns of each head that are multiplied."""
        return self.x.width // len(self.weights) - self.kept

    @property
    def outputs(self) -> int:
        """Columns of each head that are made."""
        return self.output.width // len(self.weights) - self.kept
