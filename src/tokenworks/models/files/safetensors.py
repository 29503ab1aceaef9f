"""Reads safetensors checkpoints: one file, or shards with an index, without reading the weights.

Layout (github.com/huggingface/safetensors): the header's length in 8 bytes, a JSON header, then the tensors' bytes.
"""

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tokenworks.kernels.tensor import Tensor
from tokenworks.models.files.json_file import read_json
from tokenworks.protocol.errors import ModelError

_ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ELEMENT_BYTES |= dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), 1)
_MAX_HEADER_BYTES = 100 << 20


def open_safetensors(folder: Path) -> Mapping[str, Tensor]:
    """All tensors of a checkpoint folder by name, mapped; any dtype, for the caller to judge the ones it needs.

    Raises ModelError: no weights in the folder, a shard missing, a file that is damaged or truncated.
    """
    index_path, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index_path.exists():
        if not single.exists():
            raise ModelError(f"{folder}: no weights found: neither {single.name} nor {index_path.name}.")
        return open_file(single)
    index = read_json(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ModelError(f"{index_path}: weight_map is missing or is not a table of tensor names to file names.")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise ModelError(f"{index_path}: {shard!r} is not the name of a file in this folder.")
        tensors |= open_file(folder / shard)
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ModelError(f"{index_path}: {weight_map[missing[0]]} lacks tensor {missing[0]!r}.")
    return tensors


def open_file(path: Path) -> dict[str, Tensor]:
    """One file's tensors by name, mapped. Raises ModelError."""
    try:
        with path.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}).") from error
    length = int.from_bytes(data[:8].tobytes(), "little")
    start = 8 + length
    if len(data) < 8 or length > _MAX_HEADER_BYTES or start > len(data):
        raise ModelError(f"{path} is not a safetensors file, or is truncated: its header would take {length} bytes.")
    try:
        header = json.loads(data[8:start].tobytes())
        entries = [
            (name, str(entry["dtype"]), tuple(map(int, entry["shape"])), begin, end)
            for name, entry in header.items()
            if name != "__metadata__"
            for begin, end in [map(int, entry["data_offsets"])]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: its safetensors header is damaged ({error!r}).") from error
    tensors = {}
    for name, dtype, shape, begin, end in entries:
        element_bytes = _ELEMENT_BYTES.get(dtype)
        if element_bytes is None:
            raise ModelError(
                f"{path}: tensor {name!r} has dtype {dtype}, which is not supported. Supported weights: F32, F16, BF16."
            )
        if min(shape, default=0) < 0 or end - begin != math.prod(shape) * element_bytes or begin < 0:
            raise ModelError(f"{path}: tensor {name!r}: {end - begin} bytes do not hold {shape} elements of {dtype}.")
        if start + end > len(data):
            raise ModelError(
                f"{path} is truncated: tensor {name!r} ends at byte {start + end}, the file at {len(data)}."
            )
        tensors[name] = Tensor(name, dtype, shape, data[start + begin : start + end])
    return tensors
