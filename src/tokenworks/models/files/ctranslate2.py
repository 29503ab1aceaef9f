"""Reads model.bin of CTranslate2's folders, without reading the weights.

Layout (github.com/OpenNMT/CTranslate2, version 6 of its files), all numbers little-endian: the version, the
specification's name and revision, the number of variables; each one's name, rank, sizes, type, bytes and data; then
aliases: their number, and pairs of names. A name is its length in two bytes and text that ends with a zero.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

CT2_WEIGHTS = "model.bin"
_VERSION = 6
_TYPES = ("F32", "I8", "I16", "I32", "F16", "BF16")
"""By their numbers in the file."""
_NUMBERS = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "F32": np.float32}
_MOST_DIMENSIONS = 8
_SCALE = "_scale"


@dataclass(frozen=True, slots=True)
class Ct2File:
    """An open model.bin."""

    path: Path
    specification: str
    """What kind of model it is: "WhisperSpec"."""
    tensors: dict[str, Tensor]
    numbers: dict[str, float]
    """Variables without dimensions: what the model is made of."""

    def integer(self, name: str) -> int:
        """A positive number. Raises ModelError."""
        value = self.numbers.get(name, 0)
        if not value > 0:
            raise ModelError(
                f"{self.path}: the variable {name!r} is {value or 'missing'}; a positive one was expected."
            )
        return int(value)

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Of a tensor that must be there. Raises ModelError."""
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.shape) != dimensions or 0 in tensor.shape:
            found = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
            raise ModelError(f"{self.path}: tensor {name!r} {found}; {dimensions} dimensions were expected.")
        return tensor.shape


def open_ctranslate2(path: Path) -> Ct2File:
    """Raises ModelError: not such a file, of another version, damaged or truncated."""
    try:
        with path.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from error
    at = 0

    def take(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        nonlocal at
        if count > len(data) - at:
            raise ModelError(f"{path} is truncated, or is no CTranslate2 model: it ends at byte {len(data)}.")
        at += count
        return data[at - count : at]

    def number(size: int) -> int:
        return int.from_bytes(take(size).tobytes(), "little")

    def text() -> str:
        return take(number(2)).tobytes().rstrip(b"\0").decode("utf-8", "replace")

    version = number(4)
    if version != _VERSION:
        raise ModelError(f"{path} is not a CTranslate2 model of version {_VERSION}: it begins with {version}.")
    specification = text()
    number(4)  # the specification's revision
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for _ in range(number(4)):
        name = text()
        tensor = _variable(path, name, number, take)
        if tensor.shape:
            tensors[name] = tensor
        elif tensor.format in _NUMBERS:
            numbers[name] = float(tensor.data.view(_NUMBERS[tensor.format])[0])
    tensors = _with_scales(path, tensors)
    for _ in range(number(4)):
        alias, name = text(), text()
        if name in tensors:
            tensors[alias] = tensors[name]
    return Ct2File(path, specification, tensors, numbers)


def _with_scales(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of 8 bits are stored times a number for each row, which lies in a variable of its own."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.format == "I8" and len(tensor.shape) == 2:
            factors = tensors.get(name + _SCALE)
            if factors is None or factors.format != "F32" or factors.shape != tensor.shape[:1]:
                raise ModelError(
                    f"{path}: {name!r} has 8 bits; {tensor.shape[0]} numbers {name + _SCALE!r} were expected."
                )
            tensor = replace(tensor, row_scales=np.float32(1) / factors.data.view(np.float32))
        if not name.endswith(_SCALE):
            found[name] = tensor
    return found


def _variable(
    path: Path,
    name: str,
    number: Callable[[int], int],
    take: Callable[[int], np.ndarray[tuple[int], np.dtype[np.uint8]]],
) -> Tensor:
    rank = number(1)
    if rank > _MOST_DIMENSIONS:
        raise ModelError(f"{path} is damaged: variable {name!r} has {rank} dimensions.")
    shape = tuple(number(4) for _ in range(rank))
    kind, size_bytes = number(1), number(4)
    if kind >= len(_TYPES):
        raise ModelError(f"{path}: variable {name!r} has type {kind}, which is not known.")
    elements, of_type = 1, _TYPES[kind]
    for size in shape:
        elements *= size
    if size_bytes != elements * {"8": 1, "6": 2, "2": 4}[of_type[-1]]:
        raise ModelError(f"{path}: variable {name!r}: {size_bytes} bytes do not hold {shape} elements of {of_type}.")
    return Tensor(name, of_type, shape, take(size_bytes))
