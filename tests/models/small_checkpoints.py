"""Small random checkpoints written by transformers, and ways to run a checkpoint that the tests share."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from small_dense import DENSE
from small_gemma import GEMMA
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BambaConfig,
    BertConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    GraniteMoeSharedConfig,
    LlamaConfig,
    Mamba2Config,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertConfig,
    NemotronHConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RobertaConfig,
    SmolLM3Config,
    XLMRobertaConfig,
)

from tokenworks.kernels.backend import Backend, Int32, Limits, StateBatch, StepBatch
from tokenworks.models.checkpoint import open_checkpoint

torch.set_num_threads(1)  # models this small have threads wait for each other

Float32 = npt.NDArray[np.float32]
BLOCK_TOKENS = 4

# Shapes that nothing divides: odd head counts, one KV head, windows shorter than a block, prime vocabularies.
_SMALL = {
    "vocab_size": 101,
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
_NO_SPECIAL = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
_PHI3 = {k: v for k, v in _SMALL.items() if k != "head_dim"} | {"pad_token_id": 0}
_GPT_OSS = _SMALL | {
    "num_hidden_layers": 4,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 3,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e3,
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 32,
    },
}
_MAMBA2 = {"vocab_size": 101, "hidden_size": 24, "num_heads": 6, "head_dim": 8, "num_hidden_layers": 3}
_NEMOTRON_H = {k: v for k, v in _SMALL.items() if k not in ("num_hidden_layers", "rms_norm_eps")} | {
    "mamba_num_heads": 6,
    "mamba_head_dim": 8,
    "ssm_state_size": 11,
    "n_groups": 2,
    "time_step_min": 1e-9,  # see families/mamba.py
}
_DELTA = _SMALL | {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 9,
    "linear_value_head_dim": 7,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e2, "partial_rotary_factor": 0.5},
}
_EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 12,
}
_HYBRID = _SMALL | {
    "mamba_n_heads": 8,
    "mamba_d_head": 10,
    "mamba_n_groups": 2,
    "mamba_d_state": 11,
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
    **_NO_SPECIAL,
}
_GRANITE_4 = _HYBRID | {
    "layer_types": ["mamba", "attention", "mamba"],
    "shared_intermediate_size": 24,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.2,
    "logits_scaling": 0.4,
}
_DEEPSEEK = {k: v for k, v in _SMALL.items() if k != "head_dim"} | {
    "num_key_value_heads": 5,
    "kv_lora_rank": 14,
    "q_lora_rank": 18,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 11,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 22,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.7,
    **_NO_SPECIAL,
}
_DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e3,
    "factor": 8.0,
    "beta_fast": 3.0,
    "beta_slow": 1.0,
    "mscale": 0.9,
    "mscale_all_dim": 1.4,
    "original_max_position_embeddings": 32,
}
DECODERS: dict[str, Any] = {
    "bamba": BambaConfig(**_HYBRID, attn_layer_indices=[1], mamba_proj_bias=True, attention_bias=True, mlp_bias=True),
    "granite-4": GraniteMoeHybridConfig(**_GRANITE_4, num_local_experts=5, num_experts_per_tok=2),
    "granite-4-dense": GraniteMoeHybridConfig(**_GRANITE_4, num_local_experts=0, position_embedding_type="rope"),
    "qwen3-next": Qwen3NextConfig(**_DELTA, **_EXPERTS, mlp_only_layers=[1], attention_bias=True),
    "qwen3-5": Qwen3_5TextConfig(**_DELTA, linear_conv_kernel_dim=3),
    "qwen3-5-moe": Qwen3_5MoeTextConfig(**{k: v for k, v in _DELTA.items() if k != "intermediate_size"}, **_EXPERTS),
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
    "llama": LlamaConfig(**_SMALL),
    "llama-tied-biased": LlamaConfig(**_SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-linear-rope": LlamaConfig(
        **_SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 3.0}
    ),
    "llama3-rope": LlamaConfig(
        **_SMALL,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e2,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "qwen2": Qwen2Config(**_SMALL | {"num_attention_heads": 6, "num_key_value_heads": 3}),
    "qwen2-sliding": Qwen2Config(**_SMALL, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3": Qwen3Config(**_SMALL | {"head_dim": 18, "num_attention_heads": 7}),
    "yarn-rope": LlamaConfig(
        **_SMALL | {"head_dim": 24},
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 5e2,
            "factor": 8.0,
            "beta_fast": 3.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": MistralConfig(**_SMALL, sliding_window=5),
    "mistral-no-window": MistralConfig(**_SMALL, sliding_window=None),
    "ministral": MinistralConfig(
        **_SMALL, sliding_window=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "smollm3": SmolLM3Config(**_SMALL | {"num_hidden_layers": 5}, no_rope_layer_interval=2, **_NO_SPECIAL),
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
        **_SMALL,
        attention_multiplier=0.3,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        logits_scaling=2.5,
        tie_word_embeddings=True,
    ),
    "granite-moe": GraniteMoeConfig(
        **_SMALL,
        num_local_experts=5,
        num_experts_per_tok=2,
        attention_multiplier=0.3,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        logits_scaling=0.7,
    ),
    "granite-moe-shared": GraniteMoeSharedConfig(
        **_SMALL, num_local_experts=3, num_experts_per_tok=2, shared_intermediate_size=20
    ),
    "olmo2": Olmo2Config(**_SMALL | {"num_key_value_heads": 5}, **_NO_SPECIAL),
    "olmo3": Olmo3Config(
        **_SMALL | {"num_hidden_layers": 5},
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
        **_NO_SPECIAL,
    ),
    "gemma": GemmaConfig(**_SMALL | {"head_dim": 10}),
    "gemma2": Gemma2Config(
        **_SMALL | {"num_hidden_layers": 4, "head_dim": 12},
        sliding_window=5,
        query_pre_attn_scalar=9,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
    ),
    "gemma3": Gemma3TextConfig(
        **_SMALL | {"num_hidden_layers": 7, "head_dim": 10},
        sliding_window=3,
        query_pre_attn_scalar=7,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e3, "factor": 8.0},
        },
    ),
    "gemma3-softcaps": Gemma3TextConfig(
        **_SMALL | {"num_key_value_heads": 5},
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        sliding_window=6,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
        tie_word_embeddings=False,
    ),
    "mixtral": MixtralConfig(**_SMALL, num_local_experts=5, num_experts_per_tok=2),
    "mixtral-sliding": MixtralConfig(**_SMALL, num_local_experts=3, num_experts_per_tok=1, sliding_window=3),
    # Experts narrower than a panel, and a network that all tokens pass.
    "qwen2-moe": Qwen2MoeConfig(
        **_SMALL,
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=20,
    ),
    "qwen3-moe": Qwen3MoeConfig(
        **_SMALL | {"head_dim": 18, "num_attention_heads": 7},
        num_local_experts=17,
        num_experts_per_tok=4,
        moe_intermediate_size=22,
        norm_topk_prob=True,
    ),
    "qwen3-moe-some-dense": Qwen3MoeConfig(
        **_SMALL | {"num_hidden_layers": 5},
        num_local_experts=3,
        num_experts_per_tok=3,
        moe_intermediate_size=10,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    ),
    "olmoe": OlmoeConfig(
        **_SMALL | {"num_key_value_heads": 5, "intermediate_size": 18},
        num_experts=9,
        num_experts_per_tok=4,
        **_NO_SPECIAL,
    ),
    "glm4-moe": Glm4MoeConfig(
        **_SMALL | {"num_hidden_layers": 4, "head_dim": 12},
        moe_intermediate_size=14,
        n_routed_experts=12,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        n_shared_experts=2,
        first_k_dense_replace=2,
        routed_scaling_factor=1.7,
        use_qk_norm=True,
        attention_bias=True,
    ),
    "gpt-oss": GptOssConfig(**_GPT_OSS),
    "deepseek-v2": DeepseekV2Config(**_DEEPSEEK | {"q_lora_rank": None}, n_shared_experts=2),
    "deepseek-v2-grouped": DeepseekV2Config(
        **_DEEPSEEK | {"rope_parameters": _DEEPSEEK_YARN},
        n_shared_experts=1,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
    ),
    "deepseek-v3": DeepseekV3Config(
        **_DEEPSEEK | {"rope_parameters": _DEEPSEEK_YARN, "qk_nope_head_dim": 9},
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
    ),
    # Keys whose columns fill registers, and are read in place; halves that are not interleaved.
    "deepseek-v3-biased": DeepseekV3Config(
        **_DEEPSEEK | {"q_lora_rank": None, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "first_k_dense_replace": 2},
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        attention_bias=True,
        rope_interleave=False,
        norm_topk_prob=False,
    ),
    "glm4-moe-lite": Glm4MoeLiteConfig(
        **{k: v for k, v in _DEEPSEEK.items() if k != "first_k_dense_replace"}, n_shared_experts=1
    ),
    "gpt-oss-clamped": GptOssConfig(**_GPT_OSS, swiglu_limit=0.6),
    **GEMMA,
    **DENSE,
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
}


def write_decoder(name: str, folder: Path, dtype: torch.dtype = torch.float32, config: Any = None, **how: Any) -> None:
    """A checkpoint of DECODERS[name], or of `config`, with random weights, biases and norms, large enough that each one
    matters."""
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(config or DECODERS[name])
    randomise(model)
    model.to(dtype).save_pretrained(folder, **how)


_NO_SPECIAL_ENCODER = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SMALL_ENCODER = {
    "vocab_size": 97,
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 64,
}
ENCODERS: dict[str, Any] = {
    "bert": BertConfig(**_SMALL_ENCODER),
    "roberta": RobertaConfig(**_SMALL_ENCODER, type_vocab_size=1, layer_norm_eps=1e-5),
    "xlm-roberta": XLMRobertaConfig(**_SMALL_ENCODER, type_vocab_size=1, layer_norm_eps=1e-5),
    "modernbert": ModernBertConfig(**_SMALL_ENCODER, local_attention=8, **_NO_SPECIAL_ENCODER),
    "modernbert-biased": ModernBertConfig(
        **_SMALL_ENCODER, local_attention=6, global_attn_every_n_layers=2, attention_bias=True, mlp_bias=True,
        norm_bias=True, classifier_bias=True, classifier_pooling="mean", **_NO_SPECIAL_ENCODER,
    ),
}  # fmt: skip


def write_encoder(name: str, folder: Path, *, scores: bool = False) -> PreTrainedModel:
    """A checkpoint of ENCODERS[name], with random weights; `scores`: with a head that scores a pair of texts."""
    config = copy.deepcopy(ENCODERS[name])
    torch.manual_seed(sum(map(ord, name)))
    if scores:
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    else:
        model = AutoModel.from_config(config, attn_implementation="eager")
    randomise(model)
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.add_(0.3 * torch.randn_like(weight))
        else:
            weight.normal_(std=0.5 if "embed" in name else weight.shape[1] ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.add_(0.1 * torch.randn_like(buffer))
        if name.endswith("layer_scalar"):
            buffer.mul_(0.5 + torch.rand_like(buffer))


def reference_model(folder: Path) -> PreTrainedModel:
    """The published arithmetic: transformers, float32, its plain attention and plain loop over experts."""
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **plain).eval()


@torch.no_grad()
def reference_logits(model: PreTrainedModel, ids: Sequence[int], last: int = 0) -> Float32:
    """[tokens, vocabulary], or of the `last` tokens only."""
    # transformers' Gemma 3 keeps its attention soft cap to itself unless its attention is handed it.
    cap = getattr(model.config, "attn_logit_softcapping", None) if model.config.model_type != "gemma2" else None
    logits = model(torch.tensor([list(ids)]), logits_to_keep=last, **({"softcap": cap} if cap else {})).logits
    return np.asarray(logits[0].float().numpy(), np.float32)


def our_logits(
    path: Path,
    ids: Sequence[int],
    backend: Backend,
    chunk_tokens: int | None = None,
    last: int | None = None,
    context_tokens: int | None = None,
) -> Float32:
    """[tokens, vocabulary], or of the `last` tokens only: the whole prompt in one step, or in steps of `chunk_tokens`.

    The KV cache is float32.
    """
    checkpoint = open_checkpoint(path, context_tokens)
    count, step = len(ids), chunk_tokens or len(ids)
    blocks = -(-count // BLOCK_TOKENS)
    limits = Limits(step, 1, step, blocks, BLOCK_TOKENS, "float32", 2, state_slots=2)
    model = backend.compile(checkpoint.program(), checkpoint.tensors, limits)
    # Blocks in falling order, so that a table that is not followed shows.
    table = np.arange(blocks, dtype=np.int32)[::-1].copy()[None]
    rows = []
    for start in range(0, count, step):
        tokens = np.asarray(ids[start : start + step], np.int32)
        wanted = np.arange(max(start, count - (last or count)), start + len(tokens), dtype=np.int32) - start
        rows.append(model.run(_batch(tokens, start, table, wanted)).copy())
    return np.concatenate(rows)


def greedy(path: Path, prompt: Sequence[int], count: int, backend: Backend) -> list[int]:
    """`count` tokens after the prompt, likeliest first; KV cache in float32."""
    checkpoint = open_checkpoint(path)
    blocks = -(-(len(prompt) + count) // BLOCK_TOKENS)
    limits = Limits(len(prompt), 1, len(prompt), blocks, BLOCK_TOKENS, "float32", 2, state_slots=2)
    model = backend.compile(checkpoint.program(), checkpoint.tensors, limits)
    table = np.arange(blocks, dtype=np.int32)[None]
    ids, done = list(prompt), 0
    while len(ids) < len(prompt) + count:
        tokens = np.asarray(ids[done:], np.int32)
        logits = model.run(_batch(tokens, done, table, np.array([len(tokens) - 1], np.int32)))
        done = len(ids)
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


def _batch(tokens: Int32, start: int, table: Int32, logit_rows: Int32) -> StepBatch:
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    # Recurrent states, for those that have any: from one slot into the other.
    begin, row = np.array([start % 2 if start else -1], np.int32), np.array([len(tokens) - 1], np.int32)
    states = StateBatch(begin, row, np.array([(start + len(tokens)) % 2], np.int32))
    return StepBatch(tokens, positions, np.array([0, len(tokens)], np.int32), table, logit_rows, states=states)


def log_softmax(logits: Float32) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))
