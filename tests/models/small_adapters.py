"""Random LoRA adapters as PEFT writes them, made by hand, and the model that each one makes of its base."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_MAPS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def write_adapter(
    folder: Path,
    model: PreTrainedModel,
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] = MAPS,
    dtype: torch.dtype = torch.float32,
    strength: float = 1.0,
    **config: Any,
) -> Path:
    """An adapter of every map of `model` that `targets` names; `config` goes into adapter_config.json."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), "bias": "none"}
    ranks = config.get("rank_pattern") or {}
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets and isinstance(module, torch.nn.Linear):
            r = ranks.get(name.rpartition(".")[2], rank)
            down = torch.randn(r, module.in_features, generator=generator) / module.in_features**0.5
            up = strength * torch.randn(module.out_features, r, generator=generator) / r
            tensors[f"base_model.model.{name}.lora_A.weight"] = down.to(dtype)
            tensors[f"base_model.model.{name}.lora_B.weight"] = up.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


@torch.no_grad()
def merge(model: PreTrainedModel, folder: Path, scales: dict[str, float] | float) -> PreTrainedModel:
    """`model` itself, its weights changed as the adapter says; `scales`: by the end of a map's name, or all maps'."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, module in model.named_modules():
        down = tensors.get(f"base_model.model.{name}.lora_A.weight")
        if down is not None:
            up = tensors[f"base_model.model.{name}.lora_B.weight"]
            scale = scales if isinstance(scales, float) else scales[name.rpartition(".")[2]]
            module.weight += scale * up.float() @ down.float()
    return model
