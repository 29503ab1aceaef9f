"""Configurations of small models that keep a state."""

from typing import Any

from small_shapes import HALF, NO_SPECIAL, ONE_KV, SMALL
from transformers import (
    BambaConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Mamba2Config,
    NemotronHConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)

_MAMBA2 = {"vocab_size": 101, "hidden_size": 24, "num_heads": 6, "head_dim": 8, "num_hidden_layers": 3}
_NEMOTRON_H = {k: v for k, v in SMALL.items() if k not in ("num_hidden_layers", "rms_norm_eps")} | {
    "mamba_num_heads": 6,
    "mamba_head_dim": 8,
    "ssm_state_size": 11,
    "n_groups": 2,
    "time_step_min": 1e-9,  # see families/mamba.py
}
_HYBRID = SMALL | {
    "mamba_n_heads": 8,
    "mamba_d_head": 10,
    "mamba_n_groups": 2,
    "mamba_d_state": 11,
}
_GRANITE_4 = _HYBRID | {
    "layer_types": ["mamba", "attention", "mamba"],
    "shared_intermediate_size": 24,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 0.4,
}
_FALCON_H1 = _HYBRID | {
    "mamba_d_ssm": 80,
    "embedding_multiplier": 1.7,
    "lm_head_multiplier": 0.6,
    "mlp_multipliers": [0.8, 1.3],
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.4,
    "attention_out_multiplier": 0.9,
    "ssm_multipliers": [0.8, 1.2, 0.7, 1.4, 0.9],
    "ssm_in_multiplier": 1.1,
    "ssm_out_multiplier": 0.6,
    **NO_SPECIAL,
}
_DELTA = SMALL | {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 9,
    "linear_value_head_dim": 7,
    "rope_parameters": HALF,
}
_EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 12,
}
_LFM2 = ONE_KV | {
    "norm_eps": 1e-5,
    "layer_types": ["conv", "full_attention", "conv"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e2},
}

RECURRENT: dict[str, Any] = {
    "mamba2": Mamba2Config(**_MAMBA2, state_size=10, n_groups=3),
    "mamba2-biased-tied": Mamba2Config(
        **_MAMBA2,
        state_size=17,
        n_groups=1,
        conv_kernel=2,
        use_bias=True,
        use_conv_bias=False,
        time_step_limit=(0.3, 1.2),
        tie_word_embeddings=True,
    ),
    "nemotron-h": NemotronHConfig(
        **_NEMOTRON_H, layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"]
    ),
    "nemotron-3": NemotronHConfig(
        **_NEMOTRON_H,
        layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
        n_routed_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        moe_shared_expert_intermediate_size=12,
        routed_scaling_factor=2.5,
        n_group=3,
        topk_group=2,
    ),
    "nemotron-h-biased": NemotronHConfig(
        **_NEMOTRON_H, hybrid_override_pattern="*M-", use_bias=True, mlp_bias=True, conv_kernel=5
    ),
    "bamba": BambaConfig(**_HYBRID, attn_layer_indices=[1], mamba_proj_bias=True, attention_bias=True, mlp_bias=True),
    "granite-4": GraniteMoeHybridConfig(**_GRANITE_4, num_local_experts=5, num_experts_per_tok=2),
    "granite-4-dense": GraniteMoeHybridConfig(**_GRANITE_4, num_local_experts=0, position_embedding_type="rope"),
    "falcon-h1": FalconH1Config(
        **_FALCON_H1,
        mamba_norm_before_gate=False,
        mamba_rms_norm=True,
        projectors_bias=True,
        mamba_proj_bias=True,
        attention_bias=True,
        mlp_bias=True,
    ),
    "falcon-h1-plain": FalconH1Config(**_FALCON_H1 | {"mamba_n_groups": 1}, mamba_conv_bias=False),
    "falcon-h1-norm-first": FalconH1Config(**_FALCON_H1, mamba_rms_norm=True),
    "qwen3-next": Qwen3NextConfig(**_DELTA, **_EXPERTS, mlp_only_layers=[1], attention_bias=True),
    "qwen3-5": Qwen3_5TextConfig(**_DELTA, linear_conv_kernel_dim=3),
    "qwen3-5-moe": Qwen3_5MoeTextConfig(**{k: v for k, v in _DELTA.items() if k != "intermediate_size"}, **_EXPERTS),
    "lfm2": Lfm2Config(**_LFM2, block_multiple_of=6, tie_word_embeddings=False),
    "lfm2-biased": Lfm2Config(**_LFM2, conv_bias=True, conv_L_cache=4, block_auto_adjust_ff_dim=False),
    "lfm2-moe": Lfm2MoeConfig(
        **_LFM2,
        num_dense_layers=1,
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=22,
        routed_scaling_factor=1.7,
    ),
}
