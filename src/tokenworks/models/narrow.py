"""A checkpoint's weights of 16 and 32 bits rounded to bfloat16, which processors with products of it multiply twice as
fast (kernels/cpu/linear), and which takes half of float32's memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tokenworks.kernels.formats import bfloat16_bits, dequantise
from tokenworks.kernels.tensor import Description, Tensor, describe
from tokenworks.models.checkpoint import Checkpoint


def in_bfloat16(checkpoint: Checkpoint) -> Checkpoint:
    """Matrices that are quantised stay so, and vectors as they are: they are few, and norms are sensitive."""
    return replace(checkpoint, tensors=_Rounded(checkpoint.tensors))


@dataclass(frozen=True, slots=True)
class _Rounded(Mapping[str, Tensor]):
    """Each one is rounded when it is asked for."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if len(tensor.shape) < 2 or tensor.format not in ("F32", "F16"):
            return tensor
        return replace(tensor, format="BF16", data=bfloat16_bits(dequantise(tensor)).ravel().view(np.uint8))

    def describe(self, name: str) -> Description:
        what = describe(self.tensors, name)
        if what is None:
            raise KeyError(name)
        if len(what.shape) < 2 or what.format not in ("F32", "F16"):
            return what
        return Description("BF16", what.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
