"""Reads quantised safetensors checkpoints: NVIDIA ModelOpt's and compressed-tensors' (vLLM, LLM Compressor).

A quantised weight is several tensors there: codes, scales of blocks, scales of rows or of the whole. Here they become
one Tensor in a format that kernels know, when it is looked up. Layouts as those packages write them (ModelOpt 0.47,
compressed-tensors 0.20):

    NVFP4  X.weight or X.weight_packed: uint8 [out, in / 2], the even column in the low nibble; X.weight_scale: E4M3
           [out, in / 16]; and X.weight_scale_2 (ModelOpt) multiplies, or X.weight_global_scale divides
    MXFP4  the same with X.weight_scale: E8M0 in uint8 [out, in / 32], and no third
    INT8   X.weight: int8 [out, in]; X.weight_scale: floats, one or one per row
    FP8    X.weight: E4M3; X.weight_scale the same
           or X.weight_scale_inv: floats [out / 128, in / 128], which multiply (DeepSeek-V3's files)
    gpt-oss' MXFP4  X_blocks: uint8 [experts, out, in / 32, 16]; X_scales: E8M0 in uint8 [experts, out, in / 32]

What they say about activations does not bind us, as CPU kernels quantise theirs block by block; but where FP8 weights
meet activations in FP8 by token, tensors say so to backends that may do the same (`fp8_inputs`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.json_file import read_json
from tokenworks.models.files.squares import Squares, columns_of
from tokenworks.protocol.errors import ModelError

Bytes = npt.NDArray[np.uint8]

_ACTIVATION_ENDS = ("input_scale", "input_global_scale", "k_scale", "v_scale", "weight_shape")
_ROW_FORMATS = {"I8": "I8", "F8_E4M3": "F8_E4M3"}


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A quantised weight as it lies in its file, in parts; `tensor` makes one of them."""

    name: str
    shape: tuple[int, int]
    format: str
    """The kernels' format that it becomes."""
    codes: Tensor
    scale: Tensor
    whole: Tensor | None = None
    """The third factor of NVFP4."""
    whole_divides: bool = False
    fp8_inputs: bool = False
    """Tensor's."""

    def rows(self, first: int, count: int) -> "PackedTensor":
        """Some rows: views."""
        if count == self.shape[0]:
            return self
        per_row = self.scale.shape[:1] == self.shape[:1]
        scale = self.scale.rows(first, count) if per_row else self.scale
        return replace(self, shape=(count, self.shape[1]), codes=self.codes.rows(first, count), scale=scale)

    def columns(self, first: int, count: int) -> "PackedTensor":
        """Some columns, whole blocks: a copy."""
        of_blocks = self.format not in _ROW_FORMATS
        scale = columns_of(self.scale, self.shape, first, count) if of_blocks else self.scale
        codes = columns_of(self.codes, self.shape, first, count)
        return replace(self, shape=(self.shape[0], count), codes=codes, scale=scale)

    def tensor(self) -> Tensor:
        """Made anew at each call."""
        rows, columns = self.shape
        if self.format in _ROW_FORMATS:
            scales = np.array(np.broadcast_to(dequantise(self.scale).ravel(), rows))
            return Tensor(self.name, self.format, self.shape, self.codes.data, scales, self.fp8_inputs)
        factors = None
        if self.whole is not None:
            factor = dequantise(self.whole).ravel()[0]
            factors = np.full(rows, 1 / factor if self.whole_divides else factor, np.float32)
        block, run = (64, 16) if self.format == "NVFP4" else (32, 32)
        nibbles = _ggml_order(self.codes.data.reshape(rows, columns // run, run // 2))
        unsigned = np.uint8(127 if self.format == "NVFP4" else 255)  # ggml's E4M3 scales have no sign
        scale_bytes = self.scale.data.reshape(rows, columns // block, block // run) & unsigned
        data = np.concatenate((scale_bytes, nibbles.reshape(rows, columns // block, block // 2)), axis=2)
        return Tensor(self.name, self.format, self.shape, data.reshape(-1), factors)


@dataclass(frozen=True, slots=True)
class StackedBlocks:
    """gpt-oss' experts of one layer, in MXFP4: [experts, out, in]."""

    name: str
    shape: tuple[int, int, int]
    codes: Tensor
    scales: Tensor

    @property
    def format(self) -> str:
        return "MXFP4"

    def rows_of(self, name: str, expert: int, rows: slice) -> PackedTensor:
        """Some rows of one expert."""
        codes, scales = (t.data.reshape(*self.shape[:2], -1)[expert, rows] for t in (self.codes, self.scales))
        shape = (len(codes), self.shape[2])
        return PackedTensor(
            name,
            shape,
            "MXFP4",
            Tensor(self.codes.name, "U8", codes.shape, codes),
            Tensor(self.scales.name, "U8", scales.shape, scales),
        )


def _ggml_order(pairs: Bytes) -> Bytes:
    """[..., n] bytes of neighbours (2i in the low nibble, 2i + 1 in the high) to element i beside element n + i."""
    words = np.ascontiguousarray(pairs).view("<u4")  # of 8 elements
    half = words.shape[-1] // 2
    low, high = _spread(words[..., :half]), _spread(words[..., half:])
    return (low | (high << np.uint64(4))).view(np.uint8)


def _spread(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """Eight nibbles to the low halves of eight bytes."""
    wide = words.astype("<u8")
    for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F)):
        wide = (wide | (wide << np.uint64(shift))) & np.uint64(mask)
    return wide


def open_quantised(
    folder: Path, config: Fields, found: Mapping[str, Tensor]
) -> dict[str, Tensor | PackedTensor | StackedBlocks | Squares]:
    """The checkpoint's tensors with each quantised weight as one, under the name it would have unquantised.

    Raises ModelError for a method, format or tensor that is not one of the above.
    """
    section = _settings(folder, config)
    if section is not None:
        _check(section)
    side, fp8_inputs = _side(section), section is not None and _rounds_inputs(section)
    joined: dict[str, Tensor | PackedTensor | StackedBlocks | Squares] = {}
    used: set[str] = set()
    for name, tensor in found.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "weight" and (scale := found.get(f"{name}_scale_inv")) is not None:
            joined[name] = _squares(folder, tensor, scale, side)
            used.add(scale.name)
        elif leaf == "weight_packed" or (leaf == "weight" and _is_quantised(tensor, f"{stem}.weight_scale" in found)):
            packed = _join(folder, stem, found)
            packed = replace(packed, fp8_inputs=fp8_inputs and packed.format == "F8_E4M3")
            joined[packed.name] = packed
            parts = (packed.codes, packed.scale, packed.whole)
            used |= {part.name for part in parts if part is not None}
        elif name.endswith("_blocks") and (scales := found.get(name.removesuffix("_blocks") + "_scales")) is not None:
            stacked = _stacked_blocks(folder, tensor, scales)
            joined[stacked.name] = stacked
            used |= {tensor.name, scales.name}
        elif leaf == "weight_zero_point" and not tensor.data.any():
            used.add(name)
    joined |= {
        name: tensor
        for name, tensor in found.items()
        if name not in used and name.rpartition(".")[2] not in _ACTIVATION_ENDS and name not in joined
    }
    return joined


def _is_quantised(weight: Tensor, has_scale: bool) -> bool:
    return has_scale or weight.format in ("U8", *_ROW_FORMATS)


def _settings(folder: Path, config: Fields) -> Fields | None:
    """What config.json says about quantisation, or the hf_quant_config.json that ModelOpt puts beside it."""
    section = config.section("quantization_config")
    path = folder / "hf_quant_config.json"
    if section is None and path.exists():
        section = Fields(path, read_json(path) | {"quant_method": "modelopt"})
    return section


def _check(f: Fields) -> None:
    method = f.table.get("quant_method")
    if method not in ("modelopt", "compressed-tensors", "mxfp4", "fp8"):
        raise ModelError(
            f"{f.path}: weights quantised by {method!r} are not supported, those of modelopt, compressed-tensors and "
            "DeepSeek (fp8) are: use a GGUF file, or another version of this model."
        )
    for key in ("sparsity_config", "transform_config"):
        value: Any = f.table.get(key)
        if isinstance(value, dict) and (value.get("config_groups") or value.get("format", "dense") != "dense"):
            raise ModelError(f"{f.path}: quantization_config.{key} is not supported; get a version without it.")


def _rounds_inputs(section: Fields) -> bool:
    """Whether all that is quantised meets activations in FP8 with a scale for each token (compressed-tensors)."""
    groups = section.table.get("config_groups")
    wanted = {"dynamic": True, "num_bits": 8, "type": "float", "strategy": "token"}
    found = [each.get("input_activations") for each in groups.values()] if isinstance(groups, dict) else []
    return bool(found) and all(isinstance(each, dict) and wanted.items() <= each.items() for each in found)


def _side(section: Fields | None) -> tuple[int, int]:
    """Of squares that share a scale: [rows, columns]."""
    if section is None or not section.has("weight_block_size"):
        return 128, 128
    value = section.table["weight_block_size"]
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise section.wrong("weight_block_size", "two positive integers")
    return value[0], value[1]


def _squares(folder: Path, codes: Tensor, scale: Tensor, side: tuple[int, int]) -> Squares:
    if codes.format != "F8_E4M3" or scale.format not in ("F32", "F16", "BF16") or len(codes.shape) != 2:
        raise ModelError(
            f"{folder}: {codes.name!r} is {codes.format} {list(codes.shape)} with scales in {scale.format}; of weights "
            "in squares, F8_E4M3 [out, in] with float scales is supported."
        )
    rows, columns = codes.shape
    _expect(folder, scale, (-(-rows // side[0]), -(-columns // side[1])))
    return Squares(codes.name, (rows, columns), codes, scale, side)


def _join(folder: Path, stem: str, found: Mapping[str, Tensor]) -> PackedTensor:
    codes = found.get(f"{stem}.weight_packed") or found[f"{stem}.weight"]
    scale = found.get(f"{stem}.weight_scale")
    if scale is None:
        raise ModelError(f"{folder}: {codes.name!r} has no {stem}.weight_scale beside it.")
    if len(codes.shape) != 2:
        raise ModelError(f"{folder}: quantised tensor {codes.name!r} has {len(codes.shape)} dimensions, not two.")
    name, (rows, columns) = f"{stem}.weight", codes.shape
    zero = found.get(f"{stem}.weight_zero_point")
    if zero is not None and zero.data.any():
        raise ModelError(f"{folder}: {codes.name!r} has zero points; only symmetric quantisation is supported.")
    if f"{stem}.pre_quant_scale" in found:
        raise ModelError(f"{folder}: {codes.name!r} wants its inputs scaled (AWQ), which is not supported.")
    kinds = (codes.format, scale.format)
    if kinds == ("U8", "F8_E4M3"):
        multiplies, divides = found.get(f"{stem}.weight_scale_2"), found.get(f"{stem}.weight_global_scale")
        _expect(folder, scale, (rows, columns // 8))
        return _fitting(
            folder,
            PackedTensor(name, (rows, 2 * columns), "NVFP4", codes, scale, multiplies or divides, multiplies is None),
        )
    if kinds in (("U8", "U8"), ("U8", "F8_E8M0")):
        _expect(folder, scale, (rows, columns // 16))
        return _fitting(folder, PackedTensor(name, (rows, 2 * columns), "MXFP4", codes, scale))
    if codes.format in _ROW_FORMATS and scale.format in ("F32", "F16", "BF16"):
        _expect(folder, scale, (), (1,), (1, 1), (rows,), (rows, 1))
        return PackedTensor(name, (rows, columns), _ROW_FORMATS[codes.format], codes, scale)
    raise ModelError(
        f"{folder}: {codes.name!r} is {codes.format} with scales in {scale.format}, which is not supported. Supported: "
        "NVFP4, MXFP4, and INT8 and FP8 (E4M3) with float scales."
    )


def _stacked_blocks(folder: Path, codes: Tensor, scales: Tensor) -> StackedBlocks:
    if len(codes.shape) != 4 or codes.shape[3] != 16 or codes.format != "U8":
        raise ModelError(
            f"{folder}: {codes.name!r} is {codes.format} {list(codes.shape)}; blocks of 16 U8 were expected."
        )
    experts, rows, blocks, _ = codes.shape
    _expect(folder, scales, (experts, rows, blocks))
    return StackedBlocks(codes.name.removesuffix("_blocks"), (experts, rows, 32 * blocks), codes, scales)


def _expect(folder: Path, scale: Tensor, *shapes: tuple[int, ...]) -> None:
    if scale.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ModelError(f"{folder}: {scale.name!r} has shape {list(scale.shape)}; expected {expected}.")


def _fitting(folder: Path, packed: PackedTensor) -> PackedTensor:
    block = 64 if packed.format == "NVFP4" else 32
    if packed.shape[1] % block:
        raise ModelError(
            f"{folder}: {packed.name!r} has {packed.shape[1]} columns; "
            f"{packed.format} is supported in multiples of {block}."
        )
    return packed
