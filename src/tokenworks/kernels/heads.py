"""Products of each attention head by itself."""

from dataclasses import dataclass

from tokenworks.kernels.value import Value


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
