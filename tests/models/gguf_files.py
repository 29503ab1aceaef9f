"""GGUF files with the names, forms and metadata that llama.cpp's converter gives them, from small safetensors
checkpoints. The gguf package has the names; what becomes of the numbers is told family by family in gguf_*.py."""

import copy
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_case import Case, Weights, Writer
from gguf_dense import DENSE
from gguf_experts import EXPERTS
from gguf_gemma import GEMMA
from gguf_granite import GRANITE
from gguf_recurrent import RECURRENT
from safetensors.numpy import load_file
from small_checkpoints import DECODERS, write_decoder

CASES: dict[str, Case] = DENSE | GEMMA | EXPERTS | GRANITE | RECURRENT
_EXPERT = re.compile(r"(.*experts)\.(\d+)\.(.*)")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


def config_of(name: str) -> Any:
    config = copy.deepcopy(DECODERS[CASES[name].of or name])
    for key, value in (CASES[name].changes or {}).items():
        setattr(config, key, value)
    return config


def write_checkpoint(name: str, folder: Path) -> None:
    """The safetensors checkpoint whose GGUF file `write_gguf` makes."""
    write_decoder(name, folder, config=config_of(name))


def write_gguf(folder: Path, name: str, path: Path, **changes: Any) -> None:
    """`changes`: layers, another number of them than there are; extra, tensors that are added; keys, metadata that is
    added, changed, or with None left out; split, the most tensors of a file; arch, another one; config, where it is
    not config_of(name)."""
    case, config = CASES[name], changes.get("config") or config_of(name)
    writer = gguf.GGUFWriter(
        path, gguf.MODEL_ARCH_NAMES[changes.get("arch", case.arch)], split_max_tensors=changes.get("split", 0)
    )
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(changes.get("layers", config.num_hidden_layers))
    if hasattr(config, "num_attention_heads"):
        _describe_layers(writer, config)
    case.metadata(writer, config)
    for key, value in changes.get("keys", {}).items():
        _set(writer, f"{writer.arch}.{key}", value)
    names = gguf.get_tensor_name_map(case.arch, config.num_hidden_layers)
    for theirs, weight in _stacked(case.tensors(load_file(folder / "model.safetensors"), config)).items():
        ours = names.get_name(theirs, try_suffixes=(".weight", ".bias")) or theirs
        writer.add_tensor(ours, np.ascontiguousarray(weight, np.float32))
    for extra, weight in changes.get("extra", {}).items():
        writer.add_tensor(extra, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _set(writer: Writer, key: str, value: Any) -> None:
    writer.kv_data[0].pop(key, None)
    if isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)


def _describe_layers(writer: Writer, config: Any) -> None:
    writer.add_head_count(config.num_attention_heads)
    if "layers_block_type" not in vars(config):  # whose numbers are of each layer
        writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
        if hasattr(config, "intermediate_size"):
            writer.add_feed_forward_length(config.intermediate_size)
    if getattr(config, "head_dim", None) and config.model_type != "deepseek_v3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if epsilon := getattr(config, "rms_norm_eps", None) or getattr(config, "layer_norm_epsilon", None):
        writer.add_layer_norm_rms_eps(epsilon)
    _describe_rope(writer, getattr(config, "rope_parameters", None) or {})
    experts = next((n for key in _EXPERT_COUNTS if (n := getattr(config, key, None))), 0)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(getattr(config, "num_experts_per_tok", None) or config.top_k_experts)
    width = getattr(config, "moe_intermediate_size", None)
    if experts and width:
        writer.add_expert_feed_forward_length(width)
    if getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _describe_rope(writer: Writer, rope: dict[str, Any]) -> None:
    local = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    if "rope_theta" in rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if local:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if key in rope:
                getattr(writer, f"add_rope_scaling_yarn_{key}")(rope[key])
        if "attention_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])


def _stacked(weights: Weights) -> Weights:
    """All experts of a layer in one tensor, layers in order."""
    made: Weights = {}
    stacks: dict[str, list[Any]] = {}
    for theirs in sorted(weights, key=lambda key: [int(p) if p.isdigit() else 0 for p in key.split(".")]):
        if match := _EXPERT.fullmatch(theirs):
            stacks.setdefault(f"{match[1]}.{match[3]}", []).append(weights[theirs])
        else:
            made[theirs] = weights[theirs]
    return made | {name: np.stack(each) for name, each in stacks.items()}
