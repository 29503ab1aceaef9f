"""Reads LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors in a folder.

Format: github.com/huggingface/peft, docs/source/developer_guides/checkpoint.md. A tensor is called
"base_model.model." + the module's name in the base model's own checkpoint + ".lora_A.weight" or ".lora_B.weight".
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenworks.kernels.adapter import ADAPTER_FORMATS, MOST_RANK, LowRank
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.architectures import GGUF_NAMED_AS, HF_ARCHITECTURES
from tokenworks.models.checkpoint import Checkpoint, gathered, layer_of, rotary_heads
from tokenworks.models.config import DecoderConfig
from tokenworks.models.decoder import decoder_shapes
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.json_file import read_json
from tokenworks.models.files.names import FileNames
from tokenworks.models.files.safetensors import open_file
from tokenworks.protocol.errors import ModelError

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_SIDES = {".lora_A.weight": "down", ".lora_B.weight": "up"}
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "use_dora": ((False,), "DoRA adapters are not supported"),
    "bias": (("none",), "adapters that change biases are not supported"),
    "lora_bias": ((False,), "adapters with biases are not supported"),
    "modules_to_save": (([],), "adapters that bring whole modules are not supported"),
    "trainable_token_indices": (([], {}), "adapters that change embeddings are not supported"),
    "target_parameters": (([],), "adapters of parameters that are no linear maps are not supported"),
    "use_qalora": ((False,), "QA-LoRA adapters are not supported"),
    "alora_invocation_tokens": ((), "activated LoRA adapters are not supported"),
}


@dataclass(frozen=True, slots=True)
class Module:
    """A linear map of the base model's checkpoint, by its own name; in ours it may be several, one below the other."""

    name: str
    weights: tuple[str, ...]


def read_adapter(folder: Path, base: Checkpoint) -> dict[str, LowRank]:
    """What the adapter in `folder` does to the weights of `base`, by canonical name; views of the mapped file.

    Raises ModelError naming file and cause: not such a folder, a kind of adapter that is not supported, a tensor that
    is missing, foreign, or of a wrong shape.
    """
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ModelError(f"{folder}: not an adapter's folder: it has no {path.name}.")
    if not isinstance(base.config, DecoderConfig):
        raise ModelError(f"{folder}: {base.path} is an encoder, and takes no adapters.")
    fields = Fields(config_path, read_json(config_path))
    _refuse_others(fields)
    names = names_of(base)
    shapes = decoder_shapes(base.config)
    modules = modules_of(names, shapes)
    found = _by_module(weights_path, names, modules, len(base.config.layers))
    _check_complete(fields, weights_path, modules, found)
    adaptation: dict[str, LowRank] = {}
    for usual, (full_name, sides) in found.items():
        module = modules[usual]
        rank, scale = _rank_and_scale(fields, full_name)
        _check_shapes(weights_path, sides, rank, [shapes[weight] for weight in module.weights])
        first = 0
        for weight in module.weights:
            if (rows := names.rows_of(weight)) is not None:
                up = gathered(sides["up"], rows(base.config.layers[layer_of(weight)].mixer))
            else:
                up = sides["up"].rows(first, shapes[weight][0])
            first += shapes[weight][0]
            if names.interleaved_rotary and (heads := rotary_heads(base.config, weight)):
                up = _halves(up, heads)
            adaptation[weight] = LowRank(sides["down"], up, scale)
    return adaptation


def _refuse_others(fields: Fields) -> None:
    fields.one_of("peft_type", {"LORA": True})
    for key, (harmless, why) in _REFUSED.items():
        fields.refuse(key, harmless, why)


def names_of(base: Checkpoint) -> FileNames:
    """What the family's safetensors checkpoints call its weights: adapters are made of those, whatever is served."""
    key = GGUF_NAMED_AS.get(base.architecture, base.architecture) if base.path.is_file() else base.architecture
    if key not in HF_ARCHITECTURES:
        raise ModelError(f"{base.path}: adapters of GGUF models of architecture {key!r} are not supported.")
    return HF_ARCHITECTURES[key]().files


def modules_of(names: FileNames, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Module]:
    """Those that an adapter can change, by name in the checkpoint (as `FileNames.names` has it)."""
    modules: dict[str, Module] = {}
    for weight, shape in shapes.items():
        if len(shape) != 2 or weight.endswith(("embed", "router")):
            continue
        if ".experts." in weight or ".heads." in weight:  # latent attention's are not as the file has them
            continue
        name = names.of(weight).removesuffix(".weight")
        if names.is_kernel(names.of(weight)) or names.form_of(weight) is not None:
            continue
        before = modules.get(name)
        modules[name] = Module(name, (*(before.weights if before else ()), weight))
    return modules


def _by_module(
    path: Path, names: FileNames, modules: Mapping[str, Module], layers: int
) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """By the module's usual name: its name in the adapter, and its two tensors."""
    found: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for name, tensor in open_file(path).items():
        side = next((end for end in _SIDES if name.endswith(end)), None)
        if side is None or not name.startswith(PREFIX):
            raise ModelError(f"{path}: tensor {name!r} is unexpected: a LoRA adapter has no place for it.")
        full_name = name.removeprefix(PREFIX).removesuffix(side)
        usual = names.usual(full_name + ".weight", layers).removeprefix(names.prefix).removesuffix(".weight")
        if usual not in modules:
            raise ModelError(
                f"{path}: tensor {name!r} belongs to {full_name!r}, which is no linear map of this model that an "
                "adapter can change."
            )
        found.setdefault(usual, (full_name, {}))[1][_SIDES[side]] = tensor
    for full_name, sides in found.values():
        for end, side in _SIDES.items():
            if side not in sides:
                raise ModelError(f"{path}: tensor {PREFIX + full_name + end!r} is missing.")
    if not found:
        raise ModelError(f"{path}: it has no tensors.")
    return found


def _check_complete(
    fields: Fields, path: Path, modules: Mapping[str, Module], found: Mapping[str, tuple[str, Any]]
) -> None:
    """Every module that the adapter's own config targets by name is there, in all layers if they are not chosen."""
    targets = fields.table.get("target_modules")
    chosen = any(fields.has(key) for key in ("layers_to_transform", "exclude_modules"))
    if not isinstance(targets, list):
        return
    for target in targets:
        meant = [name for name in modules if name == target or name.endswith(f".{target}")]
        missing = [name for name in meant if name not in found]
        if missing and (not chosen or len(missing) == len(meant)):
            raise ModelError(f"{path}: tensor {PREFIX + missing[0] + '.lora_A.weight'!r} is missing.")


def _rank_and_scale(fields: Fields, module: str) -> tuple[int, float]:
    rank = _of_pattern(fields, "rank_pattern", module) or fields.integer("r", maximum=MOST_RANK)
    alpha = _of_pattern(fields, "alpha_pattern", module) or fields.number("lora_alpha", zero=True)
    return int(rank), alpha / (math.sqrt(rank) if fields.flag("use_rslora", False) else rank)


def _of_pattern(fields: Fields, key: str, module: str) -> float | None:
    """The value of the first pattern that the end of the module's name matches."""
    section = fields.section(key)
    for pattern in section.table if section else ():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module) is not None
        except re.error as error:
            raise ModelError(f"{fields.path}: {key}: {pattern!r} is no regular expression ({error}).") from None
        if matches:
            assert section is not None
            return section.integer(pattern, maximum=MOST_RANK) if key == "rank_pattern" else section.number(pattern)
    return None


def _check_shapes(path: Path, sides: Mapping[str, Tensor], rank: int, shapes: list[tuple[int, ...]]) -> None:
    wanted = {"down": (rank, shapes[0][1]), "up": (sum(shape[0] for shape in shapes), rank)}
    for side, shape in wanted.items():
        tensor = sides[side]
        if tensor.shape != shape:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has shape {list(tensor.shape)}; by the adapter's config and the "
                f"model it should have {list(shape)}."
            )
        if tensor.format not in ADAPTER_FORMATS:
            raise ModelError(
                f"{path}: tensor {tensor.name!r} has type {tensor.format}, which is not supported. "
                f"Supported: {', '.join(ADAPTER_FORMATS)}."
            )


def _halves(up: Tensor, heads: int) -> Tensor:
    """Rows of rotary pairs in the order of the programs (models/checkpoint.py)."""
    pairs = up.data.reshape(heads, up.shape[0] // heads // 2, 2, -1)
    return replace(up, data=np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1))
