"""A Hugging Face style folder: config.json, tokenizer, weights in one safetensors file, in either quantised layout."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

import tokenworks
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.architectures import HF_ARCHITECTURES
from tokenworks.models.checkpoint import Checkpoint, turned
from tokenworks.models.config import DecoderConfig
from tokenworks.models.files.gguf import open_gguf
from tokenworks.models.files.json_file import read_json
from tokenworks.models.files.names import FileNames
from tokenworks.models.files.safetensors import open_safetensors
from tokenworks.quant.checkpoints import compressed_tensors, modelopt
from tokenworks.quant.checkpoints.gguf_source import config_of_gguf, write_gguf_tokenizer
from tokenworks.quant.checkpoints.pieces import by_tensor, file_order, whole
from tokenworks.quant.checkpoints.safetensors import Stored, write_safetensors
from tokenworks.quant.schemes import Quantised, SchemeName

FolderLayout = Literal["compressed-tensors", "modelopt"]

_MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Of GGUF's architectures, where the folder's model_type is another word."""
_WEIGHT_ENDS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf")
_WRITTEN = ("config.json", "hf_quant_config.json")


def write_folder(folder: Path, source: Checkpoint, quantised: Mapping[str, Quantised], layout: FolderLayout) -> None:
    """Writes `source` with some weights `quantised`, by canonical name, into an existing folder.

    What is kept keeps its dtype; numbers of block formats, which a folder has no other form for, become F16. What a
    model sees pictures with stays as it lies in its files. Raises ModelError when the source is a GGUF file whose
    config or tokenizer has no such form.
    """
    table = _config(source)
    layers = len(source.config.layers) if isinstance(source.config, DecoderConfig) else 0
    names = HF_ARCHITECTURES[table["model_type"]]().files
    tensors: dict[str, Stored] = {}
    schemes: dict[str, SchemeName] = {}
    kept: list[str] = []
    stored = compressed_tensors.stored if layout == "compressed-tensors" else modelopt.stored
    spelt, seen = _files_of_seeing(source, names)
    for usual, parts in by_tensor(source, names).items():
        name = spelt.get(usual) or names.apart(usual, layers)
        module = name.removesuffix(".weight")
        weight = whole(source, names, name, parts, quantised)
        if weight is not None:
            tensors |= stored(module, weight)
            schemes[module] = weight.scheme
        else:
            pieces = [_kept(part, source.tensors[part], names) for part in parts]
            shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
            data = np.concatenate([piece.data.ravel() for piece in pieces])
            order = file_order(source, names, parts)
            if order is not None:
                data = data.reshape(shape[0], -1)[order].ravel()
            if names.is_kernel(usual):
                shape = (shape[0], 1, *shape[1:])
            elif names.is_reshaped(usual):  # folders have these vectors as rows
                shape = (1, *shape)
            tensors[name] = Stored(pieces[0].dtype, shape, data)
            if len(shape) == 2:
                kept.append(module)
    for name, tensor in seen.items():
        tensors[name] = Stored(tensor.format, tensor.shape, tensor.data)
        if name.endswith(".weight") and len(tensor.shape) > 1:
            kept.append(name.removesuffix(".weight"))
    if table.get("tie_word_embeddings", False) and "lm_head" not in kept and names.of("embed") in tensors:
        kept.append("lm_head")
    write_safetensors(folder / "model.safetensors", tensors)
    if layout == "compressed-tensors":
        table["quantization_config"] = compressed_tensors.config(schemes, kept)
    else:
        said = modelopt.hf_quant_config(schemes, kept, tokenworks.__version__)
        write_json(folder / "hf_quant_config.json", said)
        table["quantization_config"] = modelopt.config(said)
    write_json(folder / "config.json", table)
    if source.path.is_dir():
        _copy_others(source.path, folder)
    else:
        write_gguf_tokenizer(source.path, folder)


def _files_of_seeing(source: Checkpoint, names: FileNames) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Of a model that sees pictures: what its files call each tensor, by its usual name, and those that are not of
    texts."""
    config = source.config
    if not isinstance(config, DecoderConfig) or config.vision is None:
        return {}, {}
    of_texts = {*by_tensor(source, names), names.of("head")}
    found = open_safetensors(source.path)
    spelt = {names.usual(name, len(config.layers)).removeprefix(names.prefix): name for name in found}
    return spelt, {name: found[name] for usual, name in spelt.items() if usual not in of_texts}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _config(source: Checkpoint) -> dict[str, Any]:
    if source.path.is_dir():
        return {k: v for k, v in read_json(source.path / "config.json").items() if k != "quantization_config"}
    file = open_gguf(source.path)
    architecture = str(file.metadata["general.architecture"])
    return config_of_gguf(file, source.config, _MODEL_TYPES.get(architecture, architecture))


def _kept(canonical: str, tensor: Tensor, names: FileNames) -> Stored:
    if names.is_turned(canonical):
        tensor = turned(canonical, tensor)
    form = names.form_of(canonical)
    if form is not None:
        return Stored("F32", tensor.shape, form.write(dequantise(tensor)).astype("<f4"))
    if len(tensor.shape) == 1:
        offset = names.norm_offset if canonical.endswith("norm") else 0.0
        return Stored("F32", tensor.shape, (dequantise(tensor) - np.float32(offset)).astype("<f4"))
    if tensor.format in ("F32", "F16", "BF16"):
        return Stored(tensor.format, tensor.shape, tensor.data)
    numbers = dequantise(tensor)
    if np.abs(numbers).max() < np.finfo(np.float16).max:
        return Stored("F16", tensor.shape, numbers.astype("<f2"))
    return Stored("F32", tensor.shape, numbers.astype("<f4"))


def _copy_others(source: Path, folder: Path) -> None:
    """Tokenizer, templates, licences: all that is neither weights nor written anew."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and not path.name.endswith(_WEIGHT_ENDS) and str(name) not in _WRITTEN:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
