"""Small arrays on their way to the device and back, without anybody waiting for what runs there."""

from typing import Any

import numpy as np
import torch


def send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device, behind what has begun there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor.clone()
    return tensor.pin_memory().to(device, non_blocking=True)


class Arriving:
    """Numbers of a tensor on the device as they are now, which it may change afterwards: the copy begins at once, and
    is waited for where somebody looks at it. Behaves as numpy's arrays do, as far as that is used."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._sent: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._sent = torch.cuda.Event()
            self._sent.record()
        else:
            self._host = tensor.clone()

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> Any:
        """Rows that stay on the device, by a list of numbers; whatever else is waited for."""
        if isinstance(index, list):
            return Arriving(self.tensor[send(np.array(index, np.int64), self.tensor.device)])
        return np.asarray(self)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._sent is not None:
            self._sent.synchronize()
        numbers = self._host.numpy()
        return numbers.copy() if dtype is None else numbers.astype(dtype)

    def tolist(self) -> Any:
        return np.asarray(self).tolist()
