"""Rows that a program hands out and its sequel takes in, which stay on the device (Executable.hidden)."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from tokenworks.kernels.backend import Float32

LARGE_BYTES = 4 << 20
"""Of memory that a few rows of it do not keep."""


class DeviceRows:
    """[rows, width] float32 that nobody writes to, used as numpy's array would be for len, shape, copy and slices. Like
    joining (kernels/backend.py's join_rows) these move no number: rows are put together when they are read. np.asarray
    fetches them."""

    def __init__(self, parts: Sequence[torch.Tensor], width: int, device: torch.device) -> None:
        """parts: [rows, width], one after the other."""
        self._parts, self._width, self._device = [part for part in parts if len(part)], width, device

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self._width

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice) or index.step is not None:
            return np.asarray(self)[index]
        first, end, _ = index.indices(len(self))
        found, at = [], 0
        for part in self._parts:
            found.append(_alone(part[max(0, first - at) : max(0, end - at)]))
            at += len(part)
        return DeviceRows(found, self._width, self._device)

    def copy(self) -> "DeviceRows":
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Float32:
        return cast(Float32, self.tensor().cpu().numpy().astype(dtype or np.float32))

    def joined(self, others: Sequence["DeviceRows"]) -> "DeviceRows":
        """These rows, then the others'."""
        return DeviceRows([part for rows in (self, *others) for part in rows._parts], self._width, self._device)

    def tensor(self) -> torch.Tensor:
        """[rows, width], on the device, contiguous."""
        if len(self._parts) == 1:
            return self._parts[0].contiguous()
        return torch.cat([torch.empty((0, self._width), device=self._device), *self._parts])


def rows_on(rows: Float32 | DeviceRows, device: torch.device) -> torch.Tensor:
    """[rows, width] float32."""
    return rows.tensor() if isinstance(rows, DeviceRows) else torch.from_numpy(rows).to(device)


def _alone(rows: torch.Tensor) -> torch.Tensor:
    """Without the memory of others, where that is much."""
    whole = rows.untyped_storage().nbytes()
    return rows.clone() if whole > LARGE_BYTES and 4 * rows.nbytes < whole else rows
