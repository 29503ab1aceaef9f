"""GGUF files of models that keep a state."""

import re
from typing import Any

import gguf
import numpy as np
from gguf_case import ARCH, Case, Weights, Writer, renamed, router_metadata


def recurrent(weights: Weights, config: Any) -> Weights:
    """A itself, not its logarithm; some vectors with a second dimension."""
    made: Weights = {}
    for name, weight in weights.items():
        if name.endswith("A_log"):
            weight = -np.exp(weight)
        if name.endswith(("A_log", ".D")) and "linear_attn" not in name:
            weight = weight[:, None]
        if "conv1d.weight" in name:
            weight = weight.squeeze()
        if name.endswith(("mixer.norm.weight", "mamba.norm.weight")):
            weight = weight.reshape(_groups(config), -1)
        name = name.replace("dt_bias", "dt_proj.bias").replace("e_score_correction_bias", "e_score_correction.bias")
        made[re.sub(r"backbone(.*)mixer\.experts", r"model\1mlp.experts", name)] = weight
    return made


def _groups(config: Any) -> int:
    return int(getattr(config, "mamba_n_groups", None) or config.n_groups)


def ssm(writer: Writer, kernel: int, state: int, heads: int, size: int, groups: int) -> None:
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_state_size(state)
    writer.add_ssm_group_count(groups)
    writer.add_ssm_inner_size(heads * size)
    writer.add_ssm_time_step_rank(heads)


def _mamba2_metadata(writer: Writer, config: Any) -> None:
    if config.model_type == "mamba2":
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
        ssm(writer, config.conv_kernel, config.state_size, config.num_heads, config.head_dim, config.n_groups)


def _nemotron_metadata(writer: Writer, config: Any) -> None:
    kinds = config.layers_block_type
    width = config.moe_intermediate_size if "moe" in kinds else config.intermediate_size
    writer.add_head_count_kv([config.num_key_value_heads * (kind == "full_attention") for kind in kinds])
    writer.add_feed_forward_length([width * (kind in ("mlp", "moe")) for kind in kinds])
    size, groups = config.mamba_head_dim, config.n_groups
    ssm(writer, config.conv_kernel, config.ssm_state_size, config.mamba_num_heads, size, groups)
    if "moe" in kinds:
        writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
        router_metadata(writer, config)
    else:
        for key in [key for key in writer.kv_data[0] if ".expert" in key]:
            del writer.kv_data[0][key]


def _falcon_metadata(writer: Writer, config: Any) -> None:
    heads, size, groups = config.mamba_n_heads, config.mamba_d_head, config.mamba_n_groups
    ssm(writer, config.mamba_d_conv, config.mamba_d_state, heads, size, groups)


def _falcon(weights: Weights, config: Any) -> Weights:
    """The factors are in the weights."""
    inner, shared = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
    widths = (inner, inner, shared, shared, config.mamba_n_heads)
    gate, down = config.mlp_multipliers
    factors = {
        "down_proj": down,
        "gate_proj": gate,
        "k_proj": config.key_multiplier * config.attention_in_multiplier,
        "q_proj": config.attention_in_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "mamba.out_proj": config.ssm_out_multiplier,
        "mamba.in_proj": config.ssm_in_multiplier * np.repeat(config.ssm_multipliers, widths)[:, None],
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    for name in weights:
        factor = next((factor for theirs, factor in factors.items() if name.endswith(theirs + ".weight")), 1.0)
        weights[name] = (weights[name] * factor).astype(np.float32)
    return recurrent(weights, config)


def _delta_metadata(writer: Writer, config: Any) -> None:
    heads, size = config.linear_num_value_heads, config.linear_value_head_dim
    kernel, state = config.linear_conv_kernel_dim, config.linear_key_head_dim
    ssm(writer, kernel, state, heads, size, config.linear_num_key_heads)
    recurrent = [kind == "linear_attention" for kind in config.layer_types]
    writer.add_array(f"{writer.arch}.attention.recurrent_layers", recurrent)
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))


def _next(weights: Weights, config: Any) -> Weights:
    """Queries, keys, values and gates each together, not by key head."""
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    groups = config.linear_num_key_heads
    values = config.linear_num_value_heads // groups * value
    made = _delta_norms(weights)
    for name in [name for name in made if "in_proj_qkvz" in name]:
        pieces = np.split(made.pop(name).reshape(groups, -1, config.hidden_size), [key, 2 * key, 2 * key + values], 1)
        whole = [piece.reshape(-1, config.hidden_size) for piece in pieces]
        made[name.replace("qkvz", "qkv")] = np.concatenate(whole[:3])
        made[name.replace("qkvz", "z")] = whole[3]
    return made


def _later(weights: Weights, config: Any) -> Weights:
    """Heads of values in turn of the key head that they share, not key head after key head."""
    groups, heads, size = config.linear_num_key_heads, config.linear_num_value_heads, config.linear_value_head_dim
    keys = 2 * groups * config.linear_key_head_dim

    def in_turn(weight: Any, size: int) -> Any:
        return weight.reshape(groups, heads // groups, size, -1).swapaxes(0, 1).reshape(weight.shape)

    made = _delta_norms(weights)
    for name, weight in made.items():
        if "in_proj_qkv" in name or "conv1d" in name:
            made[name] = np.concatenate((weight[:keys], in_turn(weight[keys:], size)))
        elif "in_proj_z" in name:
            made[name] = in_turn(weight, size)
        elif any(word in name for word in ("in_proj_a", "in_proj_b", "A_log", "dt_proj")):
            made[name] = in_turn(weight, 1)
        elif "linear_attn.out_proj" in name:
            made[name] = np.ascontiguousarray(in_turn(weight.T, size).T)
    return made


def _delta_norms(weights: Weights) -> Weights:
    made = recurrent(weights, None)
    grown = {name: w + 1 for name, w in made.items() if name.endswith("norm.weight") and "linear_attn" not in name}
    return made | grown


def _lfm2_metadata(writer: Writer, config: Any) -> None:
    writer.kv_data[0].pop(f"{writer.arch}.attention.head_count_kv")
    attends = [kind == "full_attention" for kind in config.layer_types]
    writer.add_head_count_kv([config.num_key_value_heads * each for each in attends])
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.model_type == "lfm2_moe":
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    else:
        writer.kv_data[0].pop(f"{writer.arch}.feed_forward_length")
        writer.add_feed_forward_length(-(-(2 * config.intermediate_size // 3) // 6) * 6)


def _lfm2(weights: Weights, config: Any) -> Weights:
    made = {name: weight.squeeze(1) if "conv.conv" in name else weight for name, weight in weights.items()}
    made = {name.removeprefix("model.") if ".experts." in name else name: weight for name, weight in made.items()}
    return renamed(made, expert_bias="expert_bias.bias")


_ALIKE = {"mlp_only_layers": [], "attention_bias": False}
RECURRENT = {
    "mamba2": Case(ARCH.MAMBA2, tensors=recurrent, metadata=_mamba2_metadata),
    "nemotron-h": Case(ARCH.NEMOTRON_H, tensors=recurrent, metadata=_nemotron_metadata),
    "nemotron-3": Case(ARCH.NEMOTRON_H_MOE, tensors=recurrent, metadata=_nemotron_metadata),
    "falcon-h1-plain": Case(ARCH.FALCON_H1, tensors=_falcon, metadata=_falcon_metadata),
    "qwen3-next": Case(ARCH.QWEN3NEXT, changes=_ALIKE, tensors=_next, metadata=_delta_metadata),
    "qwen3-5": Case(ARCH.QWEN35, tensors=_later, metadata=_delta_metadata),
    "qwen3-5-moe": Case(ARCH.QWEN35MOE, tensors=_later, metadata=_delta_metadata),
    "lfm2": Case(ARCH.LFM2, tensors=_lfm2, metadata=_lfm2_metadata),
    "lfm2-moe": Case(ARCH.LFM2MOE, changes={"routed_scaling_factor": 1.0}, tensors=_lfm2, metadata=_lfm2_metadata),
}
