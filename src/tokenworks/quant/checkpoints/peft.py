"""Writes a LoRA adapter as PEFT does: adapter_config.json and adapter_model.safetensors. Format: models/adapters.py."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tokenworks.models.adapters import CONFIG_NAME, PREFIX, WEIGHTS_NAME, Module
from tokenworks.models.checkpoint import Checkpoint, layer_of, rotary_heads
from tokenworks.models.config import DecoderConfig
from tokenworks.models.files.names import FileNames
from tokenworks.quant.checkpoints.safetensors import Stored, float32, write_safetensors
from tokenworks.quant.forward import Float32

Terms = Mapping[str, tuple[Float32, Float32]]
"""By canonical name: [rank, in_features] and [out_features, rank]."""


def write_peft(folder: Path, base: Checkpoint, names: FileNames, modules: Mapping[str, Module], terms: Terms) -> None:
    """`terms` of every weight of `modules`, whose outputs grow by their product times the input, into `folder`."""
    assert isinstance(base.config, DecoderConfig)
    tensors: dict[str, Stored] = {}
    ranks: dict[str, int] = {}
    for module in modules.values():
        down = np.concatenate([terms[weight][0] for weight in module.weights])
        up = np.zeros((sum(len(terms[weight][1]) for weight in module.weights), len(down)), np.float32)
        row = column = 0
        for weight in module.weights:
            side = terms[weight][1]
            if names.interleaved_rotary and (heads := rotary_heads(base.config, weight)):
                side = _pairs(side, heads)
            rows = names.rows_of(weight)
            at = rows(base.config.layers[layer_of(weight)].mixer) if rows else np.arange(row, row + len(side))
            up[at, column : column + side.shape[1]] = side
            row, column = row + len(side), column + side.shape[1]
        tensors[f"{PREFIX}{module.name}.lora_A.weight"] = float32(down)
        tensors[f"{PREFIX}{module.name}.lora_B.weight"] = float32(up)
        ranks[module.name] = len(down)
    usual = min(ranks.values())
    pattern = {name: rank for name, rank in ranks.items() if rank != usual}
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.path.name,
        "r": usual,
        "lora_alpha": usual,  # alpha / r multiplies the product
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in ranks}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    write_safetensors(folder / WEIGHTS_NAME, tensors)
    (folder / CONFIG_NAME).write_text(json.dumps(said, indent=2) + "\n", "utf-8")


def _pairs(up: Float32, heads: int) -> Float32:
    """Rows in the order of the files: rotary pairs side by side."""
    halves = up.reshape(heads, 2, len(up) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(up.shape)
