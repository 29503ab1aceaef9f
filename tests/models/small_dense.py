"""Configurations of small dense models that are near to Llama, in shapes that nothing divides."""

from typing import Any

from transformers import (
    Cohere2Config,
    CohereConfig,
    Dots1Config,
    Ernie4_5_MoeConfig,
    Ernie4_5Config,
    Exaone4Config,
    Glm4Config,
    GlmConfig,
    GPTNeoXConfig,
    HunYuanDenseV1Config,
    HunYuanMoEV1Config,
    Lfm2Config,
    Lfm2MoeConfig,
    Llama4TextConfig,
    MiniMaxM2Config,
    PhiConfig,
    SeedOssConfig,
    StableLmConfig,
    Starcoder2Config,
)

_SHARED = {
    "vocab_size": 101,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_SMALL = _SHARED | {"num_key_value_heads": 1}
_RMS = _SMALL | {"rms_norm_eps": 1e-5}
_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
_HALF = {"rope_type": "default", "rope_theta": 1e2, "partial_rotary_factor": 0.5}

_LFM2 = _SMALL | {
    "norm_eps": 1e-5,
    "layer_types": ["conv", "full_attention", "conv"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e2},
}

DENSE: dict[str, Any] = {
    "lfm2": Lfm2Config(**_LFM2, block_multiple_of=6, tie_word_embeddings=False),
    "lfm2-biased": Lfm2Config(**_LFM2, conv_bias=True, conv_L_cache=4, block_auto_adjust_ff_dim=False),
    "lfm2-moe": Lfm2MoeConfig(
        **_LFM2, num_dense_layers=1, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=22,
        routed_scaling_factor=1.7,
    ),
    "minimax-m2": MiniMaxM2Config(
        **_RMS | {"intermediate_size": 22}, head_dim=8, num_local_experts=7, num_experts_per_tok=3,
        rope_parameters=_HALF,
    ),
    "dots1": Dots1Config(
        **_RMS, head_dim=10, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=14,
        n_group=4, topk_group=2, first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=1.7,
        sliding_window=3, max_window_layers=2,
    ),
    "ernie4-5-moe": Ernie4_5_MoeConfig(
        **_RMS, moe_num_experts=7, moe_k=3, moe_intermediate_size=14, moe_num_shared_experts=2,
    ),
    "hunyuan-moe": HunYuanMoEV1Config(**_RMS | {"intermediate_size": 22}, head_dim=10, num_experts=5, moe_topk=2),
    "llama4": Llama4TextConfig(
        **_RMS | {"num_hidden_layers": 4, "num_key_value_heads": 5, "intermediate_size": 22}, head_dim=8,
        intermediate_size_mlp=52, num_local_experts=5, interleave_moe_layer_step=2, attention_chunk_size=7,
        no_rope_layers=[1, 0, 1, 1], floor_scale=6, attn_scale=0.4,
    ),
    "llama4-plain": Llama4TextConfig(
        **_RMS | {"num_hidden_layers": 2, "intermediate_size": 22}, head_dim=8, num_local_experts=3,
        attention_chunk_size=33, use_qk_norm=False, attn_temperature_tuning=False, attention_bias=True,
        no_rope_layers=[1, 0],
    ),
    "gpt-neox": GPTNeoXConfig(**_SHARED, rope_parameters=_HALF),
    "gpt-neox-in-turn": GPTNeoXConfig(
        **_SHARED, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
        rope_parameters=_HALF | {"partial_rotary_factor": 1.0},
    ),
    "phi": PhiConfig(**_SMALL, rope_parameters=_HALF),
    "cohere": CohereConfig(**_SMALL, logit_scale=1.5, tie_word_embeddings=False),
    "cohere2": Cohere2Config(**_SMALL, attention_bias=True, logit_scale=0.7, sliding_window=3, layer_types=_TYPES),
    "stablelm": StableLmConfig(**_SMALL, use_qkv_bias=True, rope_parameters=_HALF),
    "stablelm-parallel": StableLmConfig(**_SMALL, use_parallel_residual=True, rope_parameters=_HALF),
    "starcoder2": Starcoder2Config(**_SMALL, sliding_window=6),
    "starcoder2-unbiased": Starcoder2Config(**_SMALL, use_bias=False, tie_word_embeddings=False),
    "glm": GlmConfig(**_RMS, head_dim=12, rope_parameters=_HALF),
    "glm4": Glm4Config(**_RMS | {"num_attention_heads": 6, "num_key_value_heads": 2}, head_dim=12),
    "exaone4": Exaone4Config(**_RMS, head_dim=8, sliding_window=3, layer_types=_TYPES),
    "exaone4-no-windows": Exaone4Config(**_RMS, head_dim=8, sliding_window=None, layer_types=["full_attention"] * 3),
    "seed-oss": SeedOssConfig(**_RMS, head_dim=10, attention_out_bias=True, mlp_bias=True),
    "ernie4-5": Ernie4_5Config(**_RMS, head_dim=10, use_bias=True),
    "hunyuan": HunYuanDenseV1Config(
        **_RMS, head_dim=10, attention_bias=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e2, "alpha": 3.0, "factor": 1.0},
    ),
}  # fmt: skip
