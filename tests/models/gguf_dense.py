"""GGUF files of dense models."""

from typing import Any

import numpy as np
from gguf_case import ARCH, Case, Weights, Writer, paired, window


def _phi3_metadata(writer: Writer, config: Any) -> None:
    window(writer, config)
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


def _olmo_metadata(writer: Writer, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


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


_ONE_OF_FOUR = ["sliding_attention"] * 3 + ["full_attention"]
DENSE = {
    "llama": Case(ARCH.LLAMA, tensors=paired),
    "qwen2": Case(ARCH.QWEN2),
    "qwen3": Case(ARCH.QWEN3),
    "smollm3": Case(ARCH.SMOLLM3, changes={"no_rope_layers": [1, 1, 1, 0, 1]}, tensors=paired),
    "phi3": Case(ARCH.PHI3, metadata=_phi3_metadata),
    "phi3-partial-long": Case(ARCH.PHI3, metadata=_phi3_metadata),
    "olmo2": Case(ARCH.OLMO2),
    "olmo3": Case(ARCH.OLMO2, metadata=_olmo_metadata),
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
}
