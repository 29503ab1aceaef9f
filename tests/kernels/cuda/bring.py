"""Weights brought to the device that tests have."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from tokenworks.kernels.cuda.loading import Loading, Source
from tokenworks.kernels.tensor import Tensor

CPU = torch.device("cpu")
Made = TypeVar("Made")


def sources_of(tensors: Sequence[Tensor]) -> list[Source]:
    return [Source(each.description, partial(_given, each)) for each in tensors]


def brought(
    tensors: Sequence[Tensor], how: Callable[[Sequence[Source], Loading], Made], device: torch.device = CPU
) -> Made:
    """What `how` makes of them: pack_blocks, pack, ..."""
    with Loading(device, 2) as loading:
        return how(sources_of(tensors), loading)


def _given(tensor: Tensor) -> Tensor:
    return tensor
