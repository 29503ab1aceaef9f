"""Rows of logits that stay on the device, where tokens are drawn from them; and the drawing."""

from typing import Any, cast

import numpy as np
import torch

from tokenworks.kernels.backend import Float32, Int32, SampleBatch
from tokenworks.kernels.cuda.sampling.logprobs import logprobs
from tokenworks.kernels.cuda.sampling.sample import sample
from tokenworks.kernels.cuda.transfer import Arriving, send


class DeviceLogits:
    """[rows, vocabulary] float32, used as numpy's array would be: a number gives a row, as a copy on the CPU, and takes
    one; a list or slices give rows that stay on the device; whatever else one asks of an array is fetched."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.rows.shape)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or (isinstance(index, tuple) and all(isinstance(each, slice) for each in index)):
            return DeviceLogits(self.rows[index])
        if isinstance(index, list):
            return DeviceLogits(self.rows[self._on_device(index)])
        if isinstance(index, int | np.integer):
            return self.rows[int(index)].cpu().numpy()
        return np.asarray(self)[index]

    def __setitem__(self, index: Any, values: Any) -> None:
        if not isinstance(index, int | np.integer | slice):
            index = self._on_device(index)
        self.rows[index] = send(values, self.rows.device) if isinstance(values, np.ndarray) else values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Float32:
        return self.copy() if dtype is None else self.copy().astype(dtype)

    def copy(self) -> Float32:
        return cast(Float32, self.rows.cpu().numpy().copy())

    def argmax(self, axis: int) -> Int32:
        return cast(Int32, self.rows.argmax(dim=axis).cpu().numpy())

    def _on_device(self, index: Any) -> torch.Tensor:
        """Numbers of rows, or a truth for each row."""
        return send(np.asarray(index), self.rows.device)


def on_device(logits: Float32 | DeviceLogits, device: torch.device) -> torch.Tensor:
    """[rows, vocabulary], columns contiguous."""
    if isinstance(logits, DeviceLogits):
        return logits.rows
    return torch.from_numpy(np.ascontiguousarray(logits, np.float32)).to(device)


def draw(rows: torch.Tensor, how: SampleBatch, out: torch.Tensor) -> Int32:
    """Executable.sample; the tokens stay in `out` [rows] int32, on the device."""
    options = (how.temperature, how.top_k, how.top_p, how.min_p, how.uniform)
    numbers = np.stack([np.ascontiguousarray(each).view(np.int32) for each in options])
    given = send(numbers, rows.device)
    floats = given.view(torch.float32)
    sample(rows, floats[0], given[1], floats[2], floats[3], floats[4], out)
    return cast(Int32, Arriving(out))


def log_probabilities(rows: torch.Tensor, chosen: Int32 | Arriving, top: int) -> tuple[Float32, Int32, Int32, Float32]:
    """Executable.logprobs."""
    count, device = len(rows), rows.device
    top = min(top, rows.shape[1])
    values = torch.empty(count, dtype=torch.float32, device=device)
    ranks = torch.empty(count, dtype=torch.int32, device=device)
    top_ids = torch.empty((count, top), dtype=torch.int32, device=device)
    top_values = torch.empty((count, top), dtype=torch.float32, device=device)
    tokens = chosen.tensor if isinstance(chosen, Arriving) else send(chosen, device)
    logprobs(rows, tokens, values, ranks, top_ids, top_values)
    found = (values, ranks, top_ids, top_values)
    return cast("tuple[Float32, Int32, Int32, Float32]", tuple(Arriving(each) for each in found))
