"""What the operations of one step share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.backend import CacheType, Float32, StepBatch
from tokenworks.kernels.program import Value

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]
"""Of whatever precision the operands have."""


class Operands(Protocol):
    """What formulas of single rows read. They compute in its precision: float64 in a Step, float32 where quant/ runs
    them."""

    def load(self, value: Value) -> Floats: ...

    def weight(self, name: str) -> Floats: ...


Adapter = Mapping[str, tuple[Float64, Float64]]
"""By the weight's name: [rank, in_features], and [out_features, rank] times the scale."""


@dataclass(slots=True)
class Step:
    """What the operations of one step read and write; buffers are [rows, stride] float32, made when first written."""

    batch: StepBatch
    weights: Mapping[str, Float32]
    caches: Mapping[int, tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]
    states: Mapping[int, Float32]
    cache_dtype: CacheType
    buffers: dict[int, Float32]
    adapters: Mapping[int, Adapter]

    def load(self, value: Value) -> Float64:
        return self.buffers[value.buffer][:, columns(value)].astype(np.float64)

    def store(self, value: Value, rows: Float64) -> None:
        if value.buffer not in self.buffers or len(self.buffers[value.buffer]) != len(rows):  # of another step's part
            self.buffers[value.buffer] = np.zeros((len(rows), value.stride), np.float32)
        self.buffers[value.buffer][:, columns(value)] = rows

    def weight(self, name: str) -> Float64:
        return self.weights[name].astype(np.float64)

    def batch_of(self, rows: int) -> StepBatch:
        """The step of all tokens or, where a value has only so many rows, of the selected ones, each by itself."""
        batch, selected = self.batch, self.batch.logit_rows
        if rows == len(batch.tokens):
            return batch
        of_sequences = np.searchsorted(batch.row_starts, selected, side="right") - 1
        return StepBatch(
            batch.tokens[selected],
            batch.positions[selected],
            np.arange(len(selected) + 1, dtype=np.int32),
            batch.block_tables[of_sequences],
            np.arange(len(selected), dtype=np.int32),
            ends=None if batch.ends is None else batch.ends[selected],
        )

    def adapted_rows(self, rows: int) -> list[tuple[Adapter, npt.NDArray[np.int64]]]:
        """The step's adapters, each with the rows that it changes, of `rows`: all tokens' or the selected ones."""
        batch = self.batch
        if batch.adapters is None:
            return []
        slots = np.repeat(batch.adapters, np.diff(batch.row_starts))
        if rows != len(slots):
            slots = slots[batch.logit_rows]
        return [(self.adapters[slot], np.nonzero(slots == slot)[0]) for slot in np.unique(slots[slots >= 0]).tolist()]


def columns(value: Value) -> slice:
    return slice(value.offset, value.offset + value.width)


def sequences(batch: StepBatch, windows: bool = False) -> list[tuple[int, int]]:
    starts = batch.window_starts if windows else batch.row_starts
    assert starts is not None, "this program has windows"
    return list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))


def log_sum_exp(rows: Floats) -> Floats:
    largest = rows.max(axis=1, keepdims=True)
    return np.asarray(largest + np.log(np.exp(rows - largest).sum(axis=1, keepdims=True)))
