"""The calibration pass computes what the reference backend computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    FalconH1Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4MoeConfig,
    GptOssConfig,
    LlamaConfig,
    NemotronHConfig,
    Qwen2MoeConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
)

from tokenworks.kernels.backend import Limits, StateBatch, StepBatch
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.quant.forward import Forward, plain_product

LENGTH = 11
SMALL = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "qwen3": Qwen3Config(**SMALL),
    "glm4-moe": Glm4MoeConfig(
        **SMALL | {"head_dim": 12}, moe_intermediate_size=14, n_routed_experts=12, num_experts_per_tok=3, n_group=4,
        topk_group=2,
    ),
    "qwen2-moe": Qwen2MoeConfig(
        **SMALL, num_experts=5, moe_intermediate_size=12, shared_expert_intermediate_size=20, num_experts_per_tok=2,
    ),
    "gpt-oss": GptOssConfig(**SMALL, num_local_experts=5, num_experts_per_tok=2, sliding_window=3, swiglu_limit=0.5),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=3, attn_logit_softcapping=1.5, final_logit_softcapping=2.5),
    "gemma3n": Gemma3nTextConfig(
        **SMALL | {"num_hidden_layers": 4}, sliding_window=3, layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2, activation_sparsity_pattern=[0.6, 0.0] * 2, hidden_size_per_layer_input=6,
        vocab_size_per_layer_input=90, altup_num_inputs=3, laurel_rank=7,
    ),
    "gemma4": Gemma4TextConfig(
        **SMALL | {"num_hidden_layers": 4}, sliding_window=3, layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2, global_head_dim=16, hidden_size_per_layer_input=6, vocab_size_per_layer_input=97,
        enable_moe_block=True, num_experts=5, top_k_experts=2, moe_intermediate_size=22,
    ),
    "falcon-h1": FalconH1Config(
        **SMALL, mamba_d_ssm=48, mamba_n_heads=4, mamba_d_head=12, mamba_d_state=5, ssm_out_multiplier=0.7,
        ssm_multipliers=[0.8, 1.2, 0.7, 1.4, 0.9],
    ),
    "nemotron-h": NemotronHConfig(
        **{k: v for k, v in SMALL.items() if k != "num_hidden_layers"}, mamba_num_heads=4, mamba_head_dim=6,
        n_groups=2, ssm_state_size=5, layers_block_type=["linear_attention", "mlp", "full_attention"],
    ),
    "qwen3-5": Qwen3_5TextConfig(
        **SMALL | {"head_dim": 16}, full_attention_interval=2, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=6, linear_value_head_dim=7,
    ),
    "bert": BertConfig(
        vocab_size=97, hidden_size=36, num_hidden_layers=2, num_attention_heads=3, intermediate_size=50,
        max_position_embeddings=64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_reference_backend(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = BertModel(MODELS[name]) if name == "bert" else AutoModelForCausalLM.from_config(MODELS[name])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    program = checkpoint.program()
    tokens = np.random.default_rng(2).integers(0, 97, (3, LENGTH)).astype(np.int32)

    forward = Forward(program, checkpoint.tensors, tokens)
    while forward.next is not None:
        forward.step(plain_product(checkpoint.tensors))

    rows = 3 * LENGTH
    backend = ReferenceBackend().compile(
        program, checkpoint.tensors, Limits(rows, 3, rows, 9, 4, "float32", 1, state_slots=3)
    )
    batch = StepBatch(
        tokens.ravel(),
        np.tile(np.arange(LENGTH, dtype=np.int32), 3),
        np.arange(4, dtype=np.int32) * LENGTH,
        np.arange(9, dtype=np.int32).reshape(3, 3),
        np.arange(rows, dtype=np.int32),
        states=StateBatch(
            np.full(3, -1, np.int32), np.arange(1, 4, dtype=np.int32) * LENGTH - 1, np.arange(3, dtype=np.int32)
        ),
    )
    expected = backend.run(batch)
    assert expected.std() > 0.01
    np.testing.assert_allclose(forward.input(program.result), expected, rtol=2e-4, atol=2e-5)
