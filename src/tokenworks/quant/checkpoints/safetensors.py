"""Writes safetensors files (github.com/huggingface/safetensors): header length, JSON header, the tensors' bytes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it will lie in a file. `dtype` is safetensors' name: F32, BF16, U8, I8, F8_E4M3, ..."""

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]
    """Its bytes are what is written."""


def write_safetensors(path: Path, tensors: dict[str, Stored]) -> None:
    """One file, tensors by name, so that the same tensors make the same bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in sorted(tensors.items()):
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.data.nbytes],
        }
        at += tensor.data.nbytes
    said = json.dumps(header, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for part in _parts(tensors):
            file.write(part)


def _parts(tensors: dict[str, Stored]) -> Iterator[memoryview]:
    for _, tensor in sorted(tensors.items()):
        yield np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data


def float32(values: npt.NDArray[np.float32]) -> Stored:
    return Stored("F32", values.shape, values.astype("<f4"))
