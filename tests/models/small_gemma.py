"""Configurations of small Gemma models."""

from typing import Any

from small_shapes import SMALL
from transformers import (
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
)

_LATER = {
    "vocab_size": 101,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "sliding_window": 3,
    "vocab_size_per_layer_input": 101,
    "hidden_size_per_layer_input": 6,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_IN_TURN = ["sliding_attention", "full_attention"]

GEMMA: dict[str, Any] = {
    "gemma": GemmaConfig(**SMALL | {"head_dim": 10}),
    "gemma2": Gemma2Config(
        **SMALL | {"num_hidden_layers": 4, "head_dim": 12},
        sliding_window=5,
        query_pre_attn_scalar=9,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
    ),
    "gemma3": Gemma3TextConfig(
        **SMALL | {"num_hidden_layers": 7, "head_dim": 10},
        sliding_window=3,
        query_pre_attn_scalar=7,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 8.0},
        },
    ),
    "gemma3-softcaps": Gemma3TextConfig(
        **SMALL | {"num_key_value_heads": 5},
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        sliding_window=6,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
        tie_word_embeddings=False,
    ),
    "gemma3n": Gemma3nTextConfig(
        **_LATER | {"vocab_size_per_layer_input": 90, "intermediate_size": [44, 52, 36, 52, 60], "head_dim": 10},
        num_hidden_layers=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.6, 0.6, 0.0, 0.0, 0.3],
        altup_num_inputs=3,
        laurel_rank=7,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 8.0},
        },
    ),
    "gemma3n-none-shared": Gemma3nTextConfig(
        **_LATER | {"num_key_value_heads": 5},
        num_hidden_layers=2,
        layer_types=_IN_TURN,
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.5, 0.0],
        altup_num_inputs=4,
        altup_correct_scale=False,
        final_logit_softcapping=2.5,
        tie_word_embeddings=False,
    ),
    "gemma4": Gemma4TextConfig(
        **_LATER,
        num_hidden_layers=6,
        layer_types=_IN_TURN * 3,
        num_kv_shared_layers=3,
        use_double_wide_mlp=True,
        global_head_dim=16,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1e3, "partial_rotary_factor": 0.5},
        },
    ),
    "gemma4-experts": Gemma4TextConfig(
        **_LATER | {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size_per_layer_input": 0},
        num_hidden_layers=4,
        layer_types=_IN_TURN * 2,
        global_head_dim=12,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        final_logit_softcapping=2.5,
        tie_word_embeddings=False,
        enable_moe_block=True,
        num_experts=7,
        top_k_experts=3,
        moe_intermediate_size=22,
    ),
}
