"""GGUF files of Gemma 1 to 4."""

from statistics import NormalDist
from typing import Any

import numpy as np
from gguf_case import ARCH, Case, Weights, Writer, plus_one, renamed, window


def _gemma2_metadata(writer: Writer, config: Any) -> None:
    window(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3n_metadata(writer: Writer, config: Any) -> None:
    _sharing(writer, config)
    writer.kv_data[0].pop(f"{writer.arch}.feed_forward_length")
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_altup_active_idx(0)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    shares = config.activation_sparsity_pattern
    writer.add_activation_sparsity_scale([NormalDist().inv_cdf(share) if share else float("-inf") for share in shares])


def _sharing(writer: Writer, config: Any) -> None:
    window(writer, config)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3n(weights: Weights, config: Any) -> Weights:
    for name in ("altup_projections", "altup_unembed_projections"):
        each = [weights.pop(f"model.{name}.{n}.weight") for n in range(config.altup_num_inputs - 1)]
        weights[f"model.{name}.weight"] = np.stack(each)
    return renamed(weights, correct_output_scale="correct_output_scale.weight")


def _gemma4_metadata(writer: Writer, config: Any) -> None:
    _sharing(writer, config)
    full = [kind == "full_attention" for kind in config.layer_types]
    at = config.per_layer_config[full.index(True)]
    for key in ("key_length", "value_length", "head_count_kv"):
        del writer.kv_data[0][f"{writer.arch}.attention.{key}"]
    writer.add_key_length(at.head_dim)
    writer.add_value_length(at.head_dim)
    writer.add_key_length_swa(config.head_dim)
    writer.add_value_length_swa(config.head_dim)
    writer.add_head_count_kv([at.num_key_value_heads if each else config.num_key_value_heads for each in full])
    writer.add_rope_dimension_count(at.head_dim)
    writer.add_rope_dimension_count_swa(config.head_dim)
    del writer.kv_data[0][f"{writer.arch}.feed_forward_length"]
    shared, wide = config.num_hidden_layers - config.num_kv_shared_layers, 1 + config.use_double_wide_mlp
    writer.add_feed_forward_length([config.intermediate_size * (wide if n >= shared else 1) for n in range(len(full))])
    share = config.rope_parameters["full_attention"].get("partial_rotary_factor", 1.0)
    turned = int(at.head_dim * share / 2)
    divisors = np.array([1.0] * turned + [1e30] * (at.head_dim // 2 - turned), np.float32)
    writer.add_tensor("rope_freqs.weight", divisors)


def _gemma4(weights: Weights, config: Any) -> Weights:
    made = {}
    for name, weight in weights.items():
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        ours = {
            "router.scale": f"blk.{layer}.ffn_gate_inp.scale",
            "router.per_expert_scale": f"blk.{layer}.ffn_down_exps.scale",
            "layer_scalar": f"blk.{layer}.layer_output_scale.weight",
            "experts.gate_up_proj": f"blk.{layer}.ffn_gate_up_exps.weight",
            "experts.down_proj": f"blk.{layer}.ffn_down_exps.weight",
        }
        made[next((new for end, new in ours.items() if name.endswith(end)), name)] = weight
    return made


_TWO_ROPES = {
    f"{kind}_attention": {"rope_type": "default", "rope_theta": base}
    for kind, base in (("sliding", 1e2), ("full", 1e3))
}
_EACH_LAYER = {"allow_global_per_layer_attribute_access": True}
GEMMA = {
    "gemma": Case(ARCH.GEMMA, tensors=plus_one),
    "gemma2": Case(ARCH.GEMMA2, changes={"query_pre_attn_scalar": 12}, tensors=plus_one, metadata=_gemma2_metadata),
    "gemma3": Case(ARCH.GEMMA3, tensors=plus_one, metadata=window),
    "gemma3n": Case(
        ARCH.GEMMA3N, changes={"rope_parameters": _TWO_ROPES}, tensors=_gemma3n, metadata=_gemma3n_metadata
    ),
    "gemma4": Case(ARCH.GEMMA4, changes=_EACH_LAYER, tensors=_gemma4, metadata=_gemma4_metadata),
    "gemma4-experts": Case(ARCH.GEMMA4, changes=_EACH_LAYER, tensors=_gemma4, metadata=_gemma4_metadata),
}
