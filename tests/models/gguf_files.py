"""GGUF files with the names, forms and metadata that llama.cpp's converter gives them, from small safetensors
checkpoints. The gguf package has the names; what becomes of the numbers is told here, family by family."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from small_checkpoints import DECODERS, write_decoder

Weights = dict[str, Any]
Writer = Any
ARCH = gguf.MODEL_ARCH
_EXPERT = re.compile(r"(.*experts)\.(\d+)\.(.*)")
_LAYER = re.compile(r"(.*layers\.\d+\.)(.*)")


@dataclass
class Case:
    """A model of DECODERS, with what GGUF cannot say of it left out, as `arch`."""

    arch: Any
    of: str = ""
    changes: dict[str, Any] | None = None
    tensors: Callable[[Weights, Any], Weights] = lambda weights, _: weights
    metadata: Callable[[Writer, Any], None] = lambda *_: None


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
    added, changed, or with None left out; arch, another one; config, where it is not config_of(name)."""
    case, config = CASES[name], changes.get("config") or config_of(name)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[changes.get("arch", case.arch)])
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


_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


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


def _paired(weights: Weights, config: Any) -> Weights:
    """q and k with a rotary pair in rows that follow each other."""

    def reordered(name: str, weight: Any) -> Any:
        if "q_proj" not in name and "k_proj" not in name:
            return weight
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
        return halves.swapaxes(1, 2).reshape(weight.shape)

    return {name: reordered(name, weight) for name, weight in weights.items()}


def _plus_one(weights: Weights, config: Any) -> Weights:
    """Gemma's norms."""
    return {name: weight + 1 if "norm" in name else weight for name, weight in weights.items()}


def _renamed(weights: Weights, **words: str) -> Weights:
    def of(name: str) -> str:
        for theirs, ours in words.items():
            name = name.replace(theirs, ours)
        return name

    return {of(name): weight for name, weight in weights.items()}


# --- gpt-oss ---


def _gpt_oss(weights: Weights, config: Any) -> Weights:
    for theirs in [key for key in weights if "gate_up_proj" in key or key.endswith("down_proj")]:
        weight = weights.pop(theirs)
        weight = weight if theirs.endswith("bias") else weight.swapaxes(1, 2)
        parts = {"gate": weight[:, ::2], "up": weight[:, 1::2]} if "gate_up" in theirs else {"down": weight}
        end = ".bias" if theirs.endswith("bias") else ".weight"
        weights |= {theirs.split("gate_up")[0].split("down")[0] + m + "_proj" + end: w for m, w in parts.items()}
    return _renamed(weights, down_proj_bias="down_proj.bias", sinks="sinks.weight")


def _window(writer: Writer, config: Any) -> None:
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)


def _gemma2_metadata(writer: Writer, config: Any) -> None:
    _window(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


# --- Phi 3, Granite, OLMo ---


def _phi3_metadata(writer: Writer, config: Any) -> None:
    _window(writer, config)
    rope = config.rope_parameters
    share = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(share * config.hidden_size) // config.num_attention_heads)
    writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", 256))
    for kind in ("long", "short"):
        if factors := rope.get(f"{kind}_factor"):
            stretch = config.max_position_embeddings / rope["original_max_position_embeddings"]
            by = np.sqrt(1 + np.log(stretch) / np.log(rope["original_max_position_embeddings"]))
            if kind == "long":
                writer.add_rope_scaling_attn_factors(float(by))
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(factors, np.float32))


def _granite_metadata(writer: Writer, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    if getattr(config, "shared_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def _granite_moe(weights: Weights, config: Any) -> Weights:
    """Gate and up apart; a network that all tokens pass is the layer's own where there are no experts."""
    for theirs in list(weights):
        if ("shared_mlp" not in theirs and "block_sparse_moe" not in theirs) or "router" in theirs:
            continue
        layer = _LAYER.fullmatch(theirs)
        assert layer
        weight = weights.pop(theirs)
        of = (
            ("mlp." if config.num_local_experts == 0 else "mlp.shared_expert.")
            if "shared" in theirs
            else "mlp.experts."
        )
        halves = np.split(weight, 2, axis=-2)
        parts = {"gate": halves[0], "up": halves[1]} if "input" in theirs else {"down": weight}
        weights |= {f"{layer[1]}{of}{m}_proj.weight": part for m, part in parts.items()}
    return _paired(weights, config)


def _olmo_metadata(writer: Writer, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


# --- Recurrent layers ---


def _recurrent(weights: Weights, config: Any) -> Weights:
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


def _mamba2_metadata(writer: Writer, config: Any) -> None:
    if config.model_type == "mamba2":
        writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
        _ssm(writer, config.conv_kernel, config.state_size, config.num_heads, config.head_dim, config.n_groups)


def _ssm(writer: Writer, kernel: int, state: int, heads: int, size: int, groups: int) -> None:
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_state_size(state)
    writer.add_ssm_group_count(groups)
    writer.add_ssm_inner_size(heads * size)
    writer.add_ssm_time_step_rank(heads)


def _hybrid_metadata(writer: Writer, config: Any) -> None:
    _granite_metadata(writer, config)
    attends = [kind in ("attention", "full_attention") for kind in config.layer_types]
    writer.kv_data[0].pop(f"{writer.arch}.attention.head_count_kv")
    writer.add_head_count_kv([config.num_key_value_heads * each for each in attends])
    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")
    size, groups = config.mamba_d_head, config.mamba_n_groups
    _ssm(writer, config.mamba_d_conv, config.mamba_d_state, config.mamba_n_heads, size, groups)


def _hybrid(weights: Weights, config: Any) -> Weights:
    return _recurrent(_granite_moe(weights, config), config)


def _nemotron_metadata(writer: Writer, config: Any) -> None:
    kinds = config.layers_block_type
    width = config.moe_intermediate_size if "moe" in kinds else config.intermediate_size
    writer.add_head_count_kv([config.num_key_value_heads * (kind == "full_attention") for kind in kinds])
    writer.add_feed_forward_length([width * (kind in ("mlp", "moe")) for kind in kinds])
    size, groups = config.mamba_head_dim, config.n_groups
    _ssm(writer, config.conv_kernel, config.ssm_state_size, config.mamba_num_heads, size, groups)
    if "moe" in kinds:
        writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
        _router_metadata(writer, config)
    else:
        for key in [key for key in writer.kv_data[0] if ".expert" in key]:
            del writer.kv_data[0][key]


def _router_metadata(writer: Writer, config: Any) -> None:
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    if config.n_group:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def _delta_metadata(writer: Writer, config: Any) -> None:
    heads, size = config.linear_num_value_heads, config.linear_value_head_dim
    kernel, state = config.linear_conv_kernel_dim, config.linear_key_head_dim
    _ssm(writer, kernel, state, heads, size, config.linear_num_key_heads)
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
    made = _recurrent(weights, None)
    grown = {name: w + 1 for name, w in made.items() if name.endswith("norm.weight") and "linear_attn" not in name}
    return made | grown


# --- Latent attention ---


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
        _router_metadata(writer, config)
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
    return _renamed(weights, e_score_correction_bias="e_score_correction.bias")


def _glm_metadata(writer: Writer, config: Any) -> None:
    writer.add_rope_dimension_count(config.head_dim // 2)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    _router_metadata(writer, config)


def _glm(weights: Weights, config: Any) -> Weights:
    return _renamed(weights, e_score_correction_bias="e_score_correction.bias")


# --- Gemma 3n and 4, Falcon-H1 ---


def _gemma3n_metadata(writer: Writer, config: Any) -> None:
    _sharing(writer, config)
    writer.kv_data[0].pop(f"{writer.arch}.feed_forward_length")
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_altup_active_idx(0)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    shares = config.activation_sparsity_pattern
    writer.add_activation_sparsity_scale([NormalDist().inv_cdf(share) if share else float("-inf") for share in shares])


def _sharing(writer: Writer, config: Any) -> None:
    _window(writer, config)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3n(weights: Weights, config: Any) -> Weights:
    for name in ("altup_projections", "altup_unembed_projections"):
        each = [weights.pop(f"model.{name}.{n}.weight") for n in range(config.altup_num_inputs - 1)]
        weights[f"model.{name}.weight"] = np.stack(each)
    return _renamed(weights, correct_output_scale="correct_output_scale.weight")


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


def _falcon_metadata(writer: Writer, config: Any) -> None:
    heads, size, groups = config.mamba_n_heads, config.mamba_d_head, config.mamba_n_groups
    _ssm(writer, config.mamba_d_conv, config.mamba_d_state, heads, size, groups)


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
    return _recurrent(weights, config)


# --- Dense families ---


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
    return _renamed(made, expert_bias="expert_bias.bias")


def _neox(weights: Weights, config: Any) -> Weights:
    """All heads' q, then k, then v, not head after head."""
    for name in [name for name in weights if "query_key_value" in name]:
        heads = weights[name].reshape(config.num_attention_heads, 3, -1, *weights[name].shape[1:])
        weights[name] = heads.swapaxes(0, 1).reshape(weights[name].shape)
    return weights


def _layer_norms(writer: Writer, config: Any) -> None:
    writer.kv_data[0].pop(f"{writer.arch}.attention.layer_norm_rms_epsilon", None)
    epsilon = getattr(config, "layer_norm_eps", None) or config.norm_epsilon
    writer.add_layer_norm_eps(epsilon)
    share = config.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(share * (config.hidden_size // config.num_attention_heads)))
    if hasattr(config, "use_parallel_residual"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if hasattr(config, "logit_scale"):
        writer.add_logit_scale(config.logit_scale)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def _glm4_metadata(writer: Writer, config: Any) -> None:
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))


def _hunyuan_metadata(writer: Writer, config: Any) -> None:
    rope, size = config.rope_parameters, config.head_dim
    writer.kv_data[0].pop(f"{writer.arch}.rope.freq_base")
    writer.add_rope_freq_base(rope["rope_theta"] * rope["alpha"] ** (size / (size - 2)))


_YARN = {
    "rope_type": "yarn", "rope_theta": 1e3, "factor": 8.0, "beta_fast": 3.0, "beta_slow": 1.0, "mscale": 0.9,
    "mscale_all_dim": 0.9, "original_max_position_embeddings": 32,
}  # fmt: skip
_TWO_ROPES = {
    f"{kind}_attention": {"rope_type": "default", "rope_theta": base}
    for kind, base in (("sliding", 1e2), ("full", 1e3))
}
_ONE_OF_FOUR = ["sliding_attention"] * 3 + ["full_attention"]
_AS_PUBLISHED = {
    "no_rope_layers": [1, 1, 1, 0], "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    "attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1,
}  # fmt: skip
_EACH_LAYER = {"allow_global_per_layer_attribute_access": True}
_ALIKE = {"mlp_only_layers": [], "attention_bias": False}
CASES = {
    "llama": Case(ARCH.LLAMA, tensors=_paired),
    "qwen2": Case(ARCH.QWEN2),
    "qwen3": Case(ARCH.QWEN3),
    "gemma": Case(ARCH.GEMMA, tensors=_plus_one),
    "gemma2": Case(ARCH.GEMMA2, changes={"query_pre_attn_scalar": 12}, tensors=_plus_one, metadata=_gemma2_metadata),
    "gemma3": Case(ARCH.GEMMA3, tensors=_plus_one, metadata=_window),
    "mixtral": Case(ARCH.LLAMA, tensors=_paired),
    "qwen2-moe": Case(ARCH.QWEN2MOE),
    "qwen3-moe": Case(ARCH.QWEN3MOE),
    "gpt-oss": Case(ARCH.GPT_OSS, tensors=_gpt_oss, metadata=_window),
    "smollm3": Case(ARCH.SMOLLM3, changes={"no_rope_layers": [1, 1, 1, 0, 1]}, tensors=_paired),
    "phi3": Case(ARCH.PHI3, metadata=_phi3_metadata),
    "phi3-partial-long": Case(ARCH.PHI3, metadata=_phi3_metadata),
    "granite": Case(ARCH.GRANITE, tensors=_paired, metadata=_granite_metadata),
    "granite-moe": Case(ARCH.GRANITE_MOE, tensors=_granite_moe, metadata=_granite_metadata),
    "granite-4": Case(ARCH.GRANITE_HYBRID, tensors=_hybrid, metadata=_hybrid_metadata),
    "granite-4-dense": Case(
        ARCH.GRANITE_HYBRID, changes={"shared_intermediate_size": 52}, tensors=_hybrid, metadata=_hybrid_metadata
    ),
    "olmo2": Case(ARCH.OLMO2),
    "olmo3": Case(ARCH.OLMO2, metadata=_olmo_metadata),
    "olmoe": Case(ARCH.OLMOE),
    "glm4-moe": Case(ARCH.GLM4_MOE, tensors=_glm, metadata=_glm_metadata),
    "deepseek-v2": Case(ARCH.DEEPSEEK2, tensors=_latent, metadata=_latent_metadata),
    "deepseek-v3": Case(ARCH.DEEPSEEK2, changes={"rope_parameters": _YARN}, tensors=_latent, metadata=_latent_metadata),
    "mamba2": Case(ARCH.MAMBA2, tensors=_recurrent, metadata=_mamba2_metadata),
    "nemotron-h": Case(ARCH.NEMOTRON_H, tensors=_recurrent, metadata=_nemotron_metadata),
    "nemotron-3": Case(ARCH.NEMOTRON_H_MOE, tensors=_recurrent, metadata=_nemotron_metadata),
    "qwen3-next": Case(ARCH.QWEN3NEXT, changes=_ALIKE, tensors=_next, metadata=_delta_metadata),
    "qwen3-5": Case(ARCH.QWEN35, tensors=_later, metadata=_delta_metadata),
    "gemma3n": Case(
        ARCH.GEMMA3N, changes={"rope_parameters": _TWO_ROPES}, tensors=_gemma3n, metadata=_gemma3n_metadata
    ),
    "gemma4": Case(ARCH.GEMMA4, changes=_EACH_LAYER, tensors=_gemma4, metadata=_gemma4_metadata),
    "gemma4-experts": Case(ARCH.GEMMA4, changes=_EACH_LAYER, tensors=_gemma4, metadata=_gemma4_metadata),
    "falcon-h1-plain": Case(ARCH.FALCON_H1, tensors=_falcon, metadata=_falcon_metadata),
    "lfm2": Case(ARCH.LFM2, tensors=_lfm2, metadata=_lfm2_metadata),
    "lfm2-moe": Case(ARCH.LFM2MOE, changes={"routed_scaling_factor": 1.0}, tensors=_lfm2, metadata=_lfm2_metadata),
    "llama4": Case(ARCH.LLAMA4, changes=_AS_PUBLISHED, tensors=_llama4, metadata=_llama4_metadata),
    "minimax-m2": Case(ARCH.MINIMAXM2, tensors=_glm, metadata=_minimax_metadata),
    "ernie4-5-moe": Case(ARCH.ERNIE4_5_MOE, tensors=_glm, metadata=_ernie_metadata),
    "gpt-neox": Case(ARCH.GPTNEOX, tensors=_neox, metadata=_layer_norms),
    "gpt-neox-in-turn": Case(ARCH.GPTNEOX, tensors=_neox, metadata=_layer_norms),
    "phi": Case(ARCH.PHI2, metadata=_layer_norms),
    "cohere": Case(ARCH.COMMAND_R, changes={"tie_word_embeddings": True}, metadata=_layer_norms),
    "cohere2": Case(
        ARCH.COHERE2,
        changes={"attention_bias": False, "num_hidden_layers": 4, "layer_types": _ONE_OF_FOUR},
        metadata=_layer_norms,
    ),
    "stablelm": Case(ARCH.STABLELM, metadata=_layer_norms),
    "stablelm-parallel": Case(ARCH.STABLELM, metadata=_layer_norms),
    "starcoder2": Case(ARCH.STARCODER2, metadata=_layer_norms),
    "glm4": Case(ARCH.GLM4, metadata=_glm4_metadata),
    "exaone4": Case(ARCH.EXAONE4, metadata=_olmo_metadata),
    "exaone4-no-windows": Case(ARCH.EXAONE4),
    "seed-oss": Case(ARCH.SEED_OSS),
    "ernie4-5": Case(ARCH.ERNIE4_5),
    "hunyuan": Case(ARCH.HUNYUAN_DENSE, metadata=_hunyuan_metadata),
    "qwen3-5-moe": Case(ARCH.QWEN35MOE, tensors=_later, metadata=_delta_metadata),
}
