"""GGUF files of models with experts, and with latent attention."""

from typing import Any

import gguf
import numpy as np
from gguf_case import ARCH, Case, Weights, Writer, paired, renamed, router_metadata, window


def _gpt_oss(weights: Weights, config: Any) -> Weights:
    for theirs in [key for key in weights if "gate_up_proj" in key or key.endswith("down_proj")]:
        weight = weights.pop(theirs)
        weight = weight if theirs.endswith("bias") else weight.swapaxes(1, 2)
        parts = {"gate": weight[:, ::2], "up": weight[:, 1::2]} if "gate_up" in theirs else {"down": weight}
        end = ".bias" if theirs.endswith("bias") else ".weight"
        weights |= {theirs.split("gate_up")[0].split("down")[0] + m + "_proj" + end: w for m, w in parts.items()}
    return renamed(weights, down_proj_bias="down_proj.bias", sinks="sinks.weight")


def _glm_metadata(writer: Writer, config: Any) -> None:
    writer.add_rope_dimension_count(config.head_dim // 2)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    router_metadata(writer, config)


def _glm(weights: Weights, config: Any) -> Weights:
    return renamed(weights, e_score_correction_bias="e_score_correction.bias")


def _latent_metadata(writer: Writer, config: Any) -> None:
    turned = config.qk_rope_head_dim
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + turned)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + turned)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_rope_dimension_count(turned)
    if config.model_type == "deepseek_v3":
        router_metadata(writer, config)
    else:
        writer.add_expert_weights_scale(config.routed_scaling_factor)
    if "mscale_all_dim" in config.rope_parameters:
        writer.add_rope_scaling_yarn_log_mul(0.1 * config.rope_parameters["mscale_all_dim"])


def _latent(weights: Weights, config: Any) -> Weights:
    for name in [name for name in weights if "kv_b_proj" in name]:
        of_heads = weights.pop(name).reshape(config.num_attention_heads, -1, config.kv_lora_rank)
        keys, values = np.split(of_heads, [config.qk_nope_head_dim], axis=1)
        weights[name.replace("kv_b", "k_b")] = keys.swapaxes(1, 2)
        weights[name.replace("kv_b", "v_b")] = values
    return renamed(weights, e_score_correction_bias="e_score_correction.bias")


def _llama4_metadata(writer: Writer, config: Any) -> None:
    writer.kv_data[0].pop(f"{writer.arch}.feed_forward_length")
    writer.add_feed_forward_length(config.intermediate_size_mlp)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)


def _llama4(weights: Weights, config: Any) -> Weights:
    """Experts' maps apart, and as products read them."""
    for name in [name for name in weights if ".experts." in name]:
        weight = weights.pop(name).swapaxes(1, 2)
        if "gate_up" not in name:
            weights[name + ".weight"] = weight
            continue
        for part, half in zip(("gate_proj", "up_proj"), np.split(weight, 2, axis=1), strict=True):
            weights[name.replace("gate_up_proj", part) + ".weight"] = half
    return weights


def _minimax_metadata(writer: Writer, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))


def _ernie_metadata(writer: Writer, config: Any) -> None:
    writer.add_leading_dense_block_count(config.moe_layer_start_index)
    writer.add_interleave_moe_layer_step(config.moe_layer_interval)
    writer.add_expert_shared_count(config.moe_num_shared_experts)


_YARN = {
    "rope_type": "yarn", "rope_theta": 1e3, "factor": 8.0, "beta_fast": 3.0, "beta_slow": 1.0, "mscale": 0.9,
    "mscale_all_dim": 0.9, "original_max_position_embeddings": 32,
}  # fmt: skip
_AS_PUBLISHED = {
    "no_rope_layers": [1, 1, 1, 0], "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    "attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1,
}  # fmt: skip
EXPERTS = {
    "mixtral": Case(ARCH.LLAMA, tensors=paired),
    "qwen2-moe": Case(ARCH.QWEN2MOE),
    "qwen3-moe": Case(ARCH.QWEN3MOE),
    "gpt-oss": Case(ARCH.GPT_OSS, tensors=_gpt_oss, metadata=window),
    "olmoe": Case(ARCH.OLMOE),
    "glm4-moe": Case(ARCH.GLM4_MOE, tensors=_glm, metadata=_glm_metadata),
    "deepseek-v2": Case(ARCH.DEEPSEEK2, tensors=_latent, metadata=_latent_metadata),
    "deepseek-v3": Case(ARCH.DEEPSEEK2, changes={"rope_parameters": _YARN}, tensors=_latent, metadata=_latent_metadata),
    "llama4": Case(ARCH.LLAMA4, changes=_AS_PUBLISHED, tensors=_llama4, metadata=_llama4_metadata),
    "minimax-m2": Case(ARCH.MINIMAXM2, tensors=_glm, metadata=_minimax_metadata),
    "ernie4-5-moe": Case(ARCH.ERNIE4_5_MOE, tensors=_glm, metadata=_ernie_metadata),
}
