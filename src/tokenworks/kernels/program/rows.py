"""Instructions that bring rows into a program, and choose among them."""

from dataclasses import dataclass
from typing import Literal

from tokenworks.kernels.program.value import Value

RowIndex = Literal["token", "known_token", "position", "axis", "zero"]
"""What chooses a row of a table: see Embed."""


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = table[index of t] * scale; `index` is the token id, the same but row 0 for tokens beyond the table, the
    token's position, its place on the first of StepBatch.axes (0 without them), or always row 0."""

    output: Value
    table: str
    index: RowIndex
    scale: float


@dataclass(frozen=True, slots=True)
class Input:
    """out[t] = StepBatch.inputs[t]."""

    output: Value


@dataclass(frozen=True, slots=True)
class Inject:
    """Columns [offset, offset + width) of StepBatch.features, a row for each of StepBatch.feature_rows: they take the
    place of these rows of x, or are added to them. In place: output is x."""

    output: Value
    x: Value
    offset: int
    how: Literal["replace", "add"]


@dataclass(frozen=True, slots=True)
class Merge:
    """One row of each `count` that follow each other: side by side, [T, width] -> [T / count, count * width], or their
    mean. All of a program's have the same count, and a step's T is a multiple of it."""

    output: Value
    x: Value
    count: int
    how: Literal["concatenate", "mean"]


@dataclass(frozen=True, slots=True)
class SelectRows:
    """Keeps the rows whose logits are wanted (StepBatch.logit_rows): [T, width] -> [R, width]."""

    output: Value
    x: Value


@dataclass(frozen=True, slots=True)
class Pool:
    """One row per sequence of the step, from its rows: their mean, or the first; then / l2 norm if `normalise`."""

    output: Value
    x: Value
    how: Literal["mean", "first"]
    normalise: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Here a run may be interrupted, and other programs run: the begin of the program's next part."""
