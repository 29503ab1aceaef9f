"""Writes a GGUF file from a GGUF file: the same metadata and tensors, with some weights in ggml's NVFP4 or MXFP4.

ggml's blocks are described in models/files/gguf.py's sources; NVFP4's second-level scale lies beside its weight in a
tensor of its own, X.scale, as llama.cpp's converter writes it.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tokenworks.kernels.tensor import Tensor
from tokenworks.models.architectures import GGUF_ARCHITECTURES
from tokenworks.models.checkpoint import Checkpoint
from tokenworks.models.files.gguf import TENSOR_TYPES, open_gguf, part_paths
from tokenworks.models.files.stacked import whole_of
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.checkpoints.pieces import by_tensor, whole
from tokenworks.quant.schemes import Bytes, Quantised

_VERSION = 3
_GGML_NAMES = {"nvfp4": "NVFP4", "mxfp4": "MXFP4"}
_BLOCKS = {"NVFP4": 64, "MXFP4": 32}


def write_gguf(path: Path, source: Checkpoint, quantised: Mapping[str, Quantised]) -> None:
    """Raises InvalidRequest when the source is no GGUF file, or a weight has a format or width that GGUF has not."""
    if not source.path.is_file():
        raise InvalidRequest(
            f"{source.path}: a GGUF file is written from a GGUF file only. Use --layout compressed-tensors."
        )
    if len(part_paths(source.path)) > 1:
        raise InvalidRequest(f"{source.path}: one GGUF file is written from one only. Use --layout compressed-tensors.")
    file = open_gguf(source.path)
    names = GGUF_ARCHITECTURES[str(file.metadata["general.architecture"])]().files
    tensors = dict(file.tensors)
    experts: dict[str, dict[int, Tensor]] = {}
    for name, parts in by_tensor(source, names).items():
        weight = whole(source, names, name, parts, quantised)
        if weight is None:
            continue
        tensor = ggml_tensor(name, weight)
        place = whole_of(name, names.stacks)
        if name in tensors:
            tensors[name] = tensor
        elif place and place[0] in tensors:
            experts.setdefault(place[0], {})[place[1]] = tensor
        else:
            raise InvalidRequest(f"{source.path}: {name} lies in a tensor with others that cannot be written anew.")
    tensors |= {name: _stacked(tensors[name], each) for name, each in experts.items()}
    _write(path, file.metadata_bytes, file.metadata_pairs, file.alignment, _with_scales(tensors))


def _stacked(whole: Tensor, experts: Mapping[int, Tensor]) -> Tensor:
    """All experts of a layer in one tensor, as llama.cpp has them; one scale for each."""
    each = [experts[number] for number in sorted(experts)]
    if len(each) != whole.shape[0] or len({tensor.format for tensor in each}) != 1:
        raise InvalidRequest(f"{whole.name}: in a GGUF file all experts of a layer have the same format.")
    scales = [tensor.row_scales[:1] for tensor in each if tensor.row_scales is not None]
    return Tensor(
        whole.name,
        each[0].format,
        whole.shape,
        np.concatenate([tensor.data for tensor in each]),
        np.concatenate(scales) if scales else None,
    )


def ggml_tensor(name: str, weight: Quantised) -> Tensor:
    """A weight in ggml's blocks."""
    form = _GGML_NAMES.get(weight.scheme)
    rows, columns = weight.codes.shape
    if form is None or weight.block_scales is None:
        raise InvalidRequest(
            f"GGUF has no {weight.scheme} with a scale per row ({name}): write nvfp4 or mxfp4, or a folder."
        )
    if columns % _BLOCKS[form]:
        raise InvalidRequest(f"{name} has {columns} columns; GGUF's {form} needs a multiple of {_BLOCKS[form]}.")
    blocks = columns // _BLOCKS[form]
    run = columns // weight.block_scales.shape[1]
    codes = weight.codes.reshape(rows, -1, 2, run // 2)
    nibbles = codes[:, :, 0] | np.left_shift(codes[:, :, 1], 4, dtype=np.uint8)
    parts = (weight.block_scales.reshape(rows, blocks, -1), nibbles.reshape(rows, blocks, -1))
    scales = weight.row_scales if weight.scheme == "nvfp4" else None
    return Tensor(name, form, (rows, columns), np.concatenate(parts, axis=2).reshape(-1), scales)


def _with_scales(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Each tensor, behind it its row scales as a tensor of their own: one number where all are the same."""
    found = []
    for tensor in tensors.values():
        found.append(tensor)
        if tensor.row_scales is not None:
            numbers = tensor.row_scales
            numbers = numbers[:1] if (numbers == numbers[0]).all() else numbers
            name = tensor.name.removesuffix(".weight") + ".scale"
            found.append(Tensor(name, "F32", numbers.shape, numbers.astype("<f4").view(np.uint8)))
    return found


def _write(path: Path, metadata: Bytes, pairs: int, alignment: int, tensors: list[Tensor]) -> None:
    numbers = {name: number for number, name in TENSOR_TYPES.items()}
    described, at = b"", 0
    for tensor in tensors:
        name = tensor.name.encode()
        described += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        described += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        described += struct.pack("<IQ", numbers[tensor.format], at)
        at += tensor.data.nbytes + -tensor.data.nbytes % alignment
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), pairs))
        file.write(metadata.data)
        file.write(described)
        file.write(bytes(-file.tell() % alignment))
        for tensor in tensors:
            file.write(np.ascontiguousarray(tensor.data).data)
            file.write(bytes(-tensor.data.nbytes % alignment))
