"""Reads GGUF files: metadata and tensors of a mapped file, without reading the weights.

Layout (github.com/ggml-org/ggml, docs/gguf.md): magic, version, counts, key-value metadata, tensor descriptions, then
aligned tensor data. Little-endian. A tokenizer's arrays are most of the header and only the gateway wants them, so
arrays are skipped when a file is opened and read when asked for.
"""

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.formats import FORMATS, dequantise, tensor_bytes
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

# GGUF value types as struct and numpy both spell them.
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {number: struct.Struct(f"<{code}") for number, code in _CODES.items()}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_STRING, _ARRAY = 8, 9
# ggml's tensor types in the order of their numbers; the ones FORMATS lacks are here so that an error can name them.
_TYPE_NAMES = """
F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S
IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16
"""
TENSOR_TYPES = dict(enumerate(_TYPE_NAMES.split())) | {34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
_MAX_RANK = 4
_SCAN_BYTES = 1 << 20
_PART = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")
_PAIRS_START = 24  # behind magic, version and the two counts


@dataclass(frozen=True, slots=True)
class GgufArray:
    """Where an array lies in the file: `count` elements of GGUF value type `kind`, from byte `start` to `end`."""

    kind: int
    count: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An open GGUF file. Scalars and strings of `metadata` are plain values; arrays are read with `array`."""

    path: Path
    metadata: Mapping[str, bool | int | float | str | GgufArray]
    tensors: Mapping[str, Tensor]
    data: npt.NDArray[np.uint8]
    metadata_bytes: npt.NDArray[np.uint8]
    """Keys and values as they lie in the file, for who writes it anew."""
    metadata_pairs: int
    alignment: int

    def array(self, key: str) -> list[Any]:
        """The elements of an array of scalars or strings. Raises ModelError when there is no such array."""
        where = self.metadata.get(key)
        if not isinstance(where, GgufArray):
            raise ModelError(f"{self.path}: the GGUF metadata has no array {key!r}.")
        if where.kind == _STRING:
            starts, lengths, _ = _Reader(self.path, self.data, where.start).strings(where.count)
            whole = self.data[where.start : where.end].tobytes()
            bounds = zip((starts - where.start).tolist(), lengths.tolist(), strict=True)
            return [whole[start : start + length].decode("utf-8", "replace") for start, length in bounds]
        if where.kind not in _SCALARS:
            raise ModelError(f"{self.path}: the GGUF array {key!r} holds arrays, which no key is known to do.")
        return self.data[where.start : where.end].view(_SCALARS[where.kind].format).tolist()  # type: ignore[no-any-return]


def part_paths(path: Path) -> list[Path]:
    """The files of a model that llama.cpp's gguf-split divided, told by the name of one; of any other, itself alone."""
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    numbers = range(1, int(named["count"]) + 1)
    return [path.with_name(f"{named['stem']}-{number:05d}-of-{named['count']}.gguf") for number in numbers]


def open_gguf(path: Path) -> GgufFile:
    """Maps a file, and those that follow the first of several, and reads their headers.

    Raises ModelError: not a GGUF file, truncated, an unknown tensor type, not the first part, a part missing.
    """
    file = _open_one(path)
    count = file.metadata.get("split.count", 1)
    tensors = dict(file.tensors)
    if count not in (0, 1):
        paths = part_paths(path)
        if len(paths) != count or path != paths[0]:
            first = "the first of them" if len(paths) != count else paths[0].name
            raise ModelError(
                f"{path} is one of {count} files of a model: name {first}, with all beside it under names that end in "
                "-00001-of-00002.gguf and so on."
            )
        for part in paths[1:]:
            tensors |= _open_one(part).tensors
    return replace(file, tensors=_with_scales(path, tensors))


def _open_one(path: Path) -> GgufFile:
    """One file, the scales of its tensors not yet joined with them."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ModelError(f"{path}: cannot be read ({error}).") from error
    data = np.frombuffer(mapped, np.uint8)
    reader = _Reader(path, data, 0)
    if bytes(data[:4]) != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: it begins with {bytes(data[:4])!r}.")
    reader.at = 4
    version = reader.scalar(_U32)
    if version not in (2, 3):
        raise ModelError(f"{path}: GGUF version {version} is not supported; versions 2 and 3, little-endian, are.")
    tensor_count, pair_count = reader.scalar(_U64), reader.scalar(_U64)
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar(_U32))
    pairs_end = reader.at
    described = [_describe(reader) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ModelError(f"{path}: general.alignment is {alignment!r}; a positive integer was expected.")
    start = math.ceil(reader.at / alignment) * alignment
    tensors = {item[0]: _tensor(path, data, start, *item) for item in described}
    if len(tensors) != tensor_count:
        raise ModelError(f"{path} is damaged: it describes a tensor twice.")
    pairs = data[_PAIRS_START:pairs_end]
    return GgufFile(path, metadata, tensors, data, pairs, pair_count, alignment)


def _with_scales(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins each "X.scale" to "X.weight" as its row_scales: a scale per tensor or per row, which llama.cpp's converter
    writes beside NVFP4 weights. "X.input_scale", a hint for quantising activations, is left out: ours adapt to each
    block of inputs. That of a router of Gemma 4 is for what it sees, and stays."""
    joined = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        weight = tensors.get(stem + ".weight")
        if stem.endswith(".ffn_gate_inp"):
            joined[name] = tensor
            continue
        if weight is not None and leaf in ("scale", "input_scale"):
            continue
        scale = tensors.get(stem + ".scale") if leaf == "weight" else None
        if scale is not None:
            numbers = dequantise(scale).ravel()
            if len(numbers) not in (1, tensor.shape[0]):
                raise ModelError(f"{path}: tensor {scale.name!r} has {len(numbers)} scales for {tensor.shape[0]} rows.")
            tensor = replace(tensor, row_scales=np.array(np.broadcast_to(numbers, tensor.shape[:1])))
        joined[name] = tensor
    return joined


def _describe(reader: "_Reader") -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type number and offset of one tensor; the file has dimensions innermost first."""
    name, rank = reader.string(), reader.scalar(_U32)
    if not 1 <= rank <= _MAX_RANK:
        raise ModelError(f"{reader.path}: tensor {name!r} has {rank} dimensions; 1 to {_MAX_RANK} were expected.")
    shape = tuple(reversed([reader.scalar(_U64) for _ in range(rank)]))
    return name, shape, reader.scalar(_U32), reader.scalar(_U64)


def _tensor(
    path: Path, data: npt.NDArray[np.uint8], start: int, name: str, shape: tuple[int, ...], kind: int, offset: int
) -> Tensor:
    form = TENSOR_TYPES.get(kind, f"number {kind}")
    if form not in FORMATS:
        raise ModelError(
            f"{path}: tensor {name!r} has type {form}, which is not supported. Supported: {', '.join(FORMATS)}."
        )
    try:
        size = tensor_bytes(form, shape)
    except ValueError as error:
        raise ModelError(f"{path}: tensor {name!r}: {error}.") from error
    begin = start + offset
    if begin + size > len(data):
        raise ModelError(
            f"{path} is truncated: tensor {name!r} ends at byte {begin + size}, the file at {len(data)}. Get it again."
        )
    return Tensor(name, form, shape, data[begin : begin + size])


@dataclass(slots=True)
class _Reader:
    """A place in the file; every read moves it."""

    path: Path
    data: npt.NDArray[np.uint8]
    at: int

    def _truncated(self) -> ModelError:
        return ModelError(f"{self.path} is truncated or damaged: its header runs past byte {len(self.data)}.")

    def scalar(self, form: struct.Struct) -> Any:
        try:
            (value,) = form.unpack_from(self.data.data, self.at)
        except struct.error as error:
            raise self._truncated() from error
        self.at += form.size
        return value

    def string(self) -> str:
        length = self.scalar(_U64)
        if length > len(self.data) - self.at:
            raise self._truncated()
        self.at += length
        return self.data[self.at - length : self.at].tobytes().decode("utf-8", "replace")

    def value(self, kind: int) -> bool | int | float | str | GgufArray:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])  # type: ignore[no-any-return]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ModelError(f"{self.path}: unknown GGUF value type {kind}; the file is damaged or newer than we know.")
        return self.array()

    def array(self) -> GgufArray:
        kind, count = self.scalar(_U32), self.scalar(_U64)
        start = self.at
        if kind in _SCALARS:
            self.at += count * _SCALARS[kind].size
        elif kind == _STRING:
            _, _, self.at = self.strings(count)
        else:
            raise ModelError(f"{self.path}: a GGUF array of value type {kind} is not supported.")
        if self.at > len(self.data):
            raise self._truncated()
        return GgufArray(kind, count, start, self.at)

    def strings(self, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
        """Byte positions and lengths of `count` strings from here, and where they end.

        Each string lies behind its 8-byte length, a chain that only a loop can follow. But text holds no zero bytes
        and a length is mostly zero bytes, so a string begins where a non-zero byte follows a zero one: guess all
        starts of a stretch at once, keep what the chain confirms, and step by hand where a guess fails.
        """
        starts, lengths, found, at, span = [], [], 0, self.at, _SCAN_BYTES
        while found < count:
            window = self.data[at : at + span]
            guesses = np.flatnonzero((window[1:] != 0) & (window[:-1] == 0))[: count - found] + 1
            guesses = guesses[guesses >= 8]
            claimed = window[guesses[:, None] + np.arange(-8, 0)].view("<i8")[:, 0]
            follows = np.concatenate(([0], guesses[:-1] + claimed[:-1])) == guesses - 8
            good = int(np.argmin(np.append(follows & (claimed >= 0), False)))
            if good and guesses[good - 1] + claimed[good - 1] > len(window):
                good -= 1  # its text runs past the stretch
            if good:
                starts.append(at + guesses[:good])
                lengths.append(claimed[:good])
                at += int(guesses[good - 1] + claimed[good - 1])
                found += good
                span = min(2 * span, _SCAN_BYTES)
            else:
                stepped = _Reader(self.path, self.data, at)
                length = stepped.scalar(_U64)
                if length > len(self.data) - stepped.at:
                    raise self._truncated()
                starts.append(np.array([stepped.at]))
                lengths.append(np.array([length]))
                at = stepped.at + length
                found += 1
                span = 4096
        if not starts:
            return np.empty(0, np.int64), np.empty(0, np.int64), at
        return np.concatenate(starts), np.concatenate(lengths), at
