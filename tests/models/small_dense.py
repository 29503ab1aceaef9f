"""Configurations of small dense models."""

from typing import Any

from small_shapes import BARE, HALF, NO_SPECIAL, ONE_KV, ONE_KV_RMS, SMALL
from transformers import (
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    Glm4Config,
    GlmConfig,
    GPTNeoXConfig,
    GraniteConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

_PHI3 = {k: v for k, v in SMALL.items() if k != "head_dim"} | {"pad_token_id": 0}
_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]

DENSE: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied-biased": LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-linear-rope": LlamaConfig(
        **SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 3.0}
    ),
    "llama3-rope": LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e2,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "qwen2": Qwen2Config(**SMALL | {"num_attention_heads": 6, "num_key_value_heads": 3}),
    "qwen2-sliding": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3": Qwen3Config(**SMALL | {"head_dim": 18, "num_attention_heads": 7}),
    "yarn-rope": LlamaConfig(
        **SMALL | {"head_dim": 24},
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 5e2,
            "factor": 8.0,
            "beta_fast": 3.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": MistralConfig(**SMALL, sliding_window=5),
    "mistral-no-window": MistralConfig(**SMALL, sliding_window=None),
    "ministral": MinistralConfig(
        **SMALL, sliding_window=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "smollm3": SmolLM3Config(**SMALL | {"num_hidden_layers": 5}, no_rope_layer_interval=2, **NO_SPECIAL),
    "phi3": Phi3Config(**_PHI3),
    "phi3-partial-long": Phi3Config(
        **_PHI3 | {"hidden_size": 60, "max_position_embeddings": 256},
        original_max_position_embeddings=16,
        sliding_window=7,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e2,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1, 1.2],
            "long_factor": [1.5, 2.5, 9.0],
        },
    ),
    "granite": GraniteConfig(
        **SMALL,
        attention_multiplier=0.3,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        logits_scaling=2.5,
        tie_word_embeddings=True,
    ),
    "olmo2": Olmo2Config(**SMALL | {"num_key_value_heads": 5}, **NO_SPECIAL),
    "olmo3": Olmo3Config(
        **SMALL | {"num_hidden_layers": 5},
        sliding_window=6,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 1e2,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "attention_factor": 1.2,
            },
        },
        **NO_SPECIAL,
    ),
    "gpt-neox": GPTNeoXConfig(**BARE, rope_parameters=HALF),
    "gpt-neox-in-turn": GPTNeoXConfig(
        **BARE,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters=HALF | {"partial_rotary_factor": 1.0},
    ),
    "phi": PhiConfig(**ONE_KV, rope_parameters=HALF),
    "cohere": CohereConfig(**ONE_KV, logit_scale=1.5, tie_word_embeddings=False),
    "cohere2": Cohere2Config(**ONE_KV, attention_bias=True, logit_scale=0.7, sliding_window=3, layer_types=_TYPES),
    "stablelm": StableLmConfig(**ONE_KV, use_qkv_bias=True, rope_parameters=HALF),
    "stablelm-parallel": StableLmConfig(**ONE_KV, use_parallel_residual=True, rope_parameters=HALF),
    "starcoder2": Starcoder2Config(**ONE_KV, sliding_window=6),
    "starcoder2-unbiased": Starcoder2Config(**ONE_KV, use_bias=False, tie_word_embeddings=False),
    "glm": GlmConfig(**ONE_KV_RMS, head_dim=12, rope_parameters=HALF),
    "glm4": Glm4Config(**ONE_KV_RMS | {"num_attention_heads": 6, "num_key_value_heads": 2}, head_dim=12),
    "exaone4": Exaone4Config(**ONE_KV_RMS, head_dim=8, sliding_window=3, layer_types=_TYPES),
    "exaone4-no-windows": Exaone4Config(
        **ONE_KV_RMS, head_dim=8, sliding_window=None, layer_types=["full_attention"] * 3
    ),
    "seed-oss": SeedOssConfig(**ONE_KV_RMS, head_dim=10, attention_out_bias=True, mlp_bias=True),
    "ernie4-5": Ernie4_5Config(**ONE_KV_RMS, head_dim=10, use_bias=True),
    "hunyuan": HunYuanDenseV1Config(
        **ONE_KV_RMS,
        head_dim=10,
        attention_bias=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e2, "alpha": 3.0, "factor": 1.0},
    ),
}
