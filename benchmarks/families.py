"""Decoding and prompts of published models' shapes with random weights: what each family costs here.

    python benchmarks/families.py [--only qwen3,lfm2] [--format Q8_0] [--threads 2]

Weights are random bytes of one format (experts of gpt-oss in MXFP4, as shipped), for speed does not depend on their
values. Models of more than 2 GB run with some of their layers: the first column says how many of how many. The share is
of the time in which the same threads read that many bytes as a step's weights have: of a mixture those of the experts
that a token chooses. Decoding stands behind 128 tokens, a prompt has 512.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from linear import memory_limit_bytes_per_s

from tokenworks.kernels.check import needs
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.program import Embed, Experts, Linear, LinearHeads, Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.architectures import HF_ARCHITECTURES
from tokenworks.models.config import DecoderConfig
from tokenworks.models.decoder import decoder_program, decoder_shapes
from tokenworks.models.files.fields import Fields
from tokenworks.quant.served import Served

SCALES = {"Q8_0": [1, 8], "Q4_0": [1, 8], "MXFP4": [110]}
"""The bytes that a block begins with: a small scale."""


@dataclass(frozen=True)
class Published:
    layers: int
    """Of the whole model."""
    config: dict[str, Any]
    """What its config.json says of its shape, `num_hidden_layers` being those that run."""


def llama_like(model_type: str, layers: int, sizes: str, vocabulary: int, run: int = 0, **others: Any) -> Published:
    """`sizes`: width, inner width, heads, KV heads, head size."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    numbers = dict(zip(names, map(int, sizes.split()), strict=True))
    common = {"model_type": model_type, "vocab_size": vocabulary, "num_hidden_layers": run or layers,
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
              "hidden_act": "silu", "eos_token_id": 0}  # fmt: skip
    return Published(layers, common | numbers | others)


MODELS = {
    "Llama 3.2 1B": llama_like("llama", 16, "2048 8192 32 8 64", 128256),
    "Qwen3 0.6B": llama_like("qwen3", 28, "1024 3072 16 8 128", 151936),
    "Gemma 3 1B": llama_like("gemma3_text", 26, "1152 6912 4 1 256", 262144, hidden_activation="gelu_pytorch_tanh",
                             sliding_window=512, query_pre_attn_scalar=256, rope_local_base_freq=1e4),
    "Phi 4 mini 3.8B": llama_like("phi3", 32, "3072 8192 24 8 128", 200064, run=8, partial_rotary_factor=0.75,
                                  original_max_position_embeddings=4096),
    "OLMo 2 1B": llama_like("olmo2", 16, "2048 8192 16 16 128", 100352, tie_word_embeddings=False),
    "Granite 3.1 1B A400M": llama_like("granitemoe", 24, "1024 512 16 8 64", 49155, num_local_experts=32,
                                       num_experts_per_tok=8, embedding_multiplier=12.0, residual_multiplier=0.22,
                                       attention_multiplier=0.0156, logits_scaling=6.0),
    "OLMoE 1B 7B": llama_like("olmoe", 16, "2048 1024 16 16 128", 50304, run=4, num_experts=64,
                              num_experts_per_tok=8, norm_topk_prob=False, tie_word_embeddings=False),
    "Qwen3 30B A3B": llama_like("qwen3_moe", 48, "2048 6144 32 4 128", 151936, run=3, num_experts=128,
                                num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
                                decoder_sparse_step=1, mlp_only_layers=[], tie_word_embeddings=False),
    "gpt-oss 20B": llama_like("gpt_oss", 24, "2880 2880 64 8 64", 201088, run=3, num_local_experts=32,
                              num_experts_per_tok=4, sliding_window=128, attention_bias=True, swiglu_limit=7.0,
                              layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                              tie_word_embeddings=False),
    "DeepSeek-V2 Lite 16B": llama_like("deepseek_v2", 27, "2048 10944 16 16 128", 102400, run=4, kv_lora_rank=512,
                                       q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
                                       n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
                                       moe_intermediate_size=1408, first_k_dense_replace=1, topk_method="greedy",
                                       n_group=1, topk_group=1, routed_scaling_factor=1.0, norm_topk_prob=False,
                                       scoring_func="softmax", moe_layer_freq=1, tie_word_embeddings=False),
    "Mamba 2 130M": Published(24, {"model_type": "mamba2", "vocab_size": 50288, "hidden_size": 768,
                                   "num_hidden_layers": 24, "state_size": 128, "num_heads": 24, "head_dim": 64,
                                   "expand": 2, "n_groups": 1, "conv_kernel": 4, "layer_norm_epsilon": 1e-5,
                                   "use_conv_bias": True, "use_bias": False, "tie_word_embeddings": True,
                                   "hidden_act": "silu", "chunk_size": 256, "eos_token_id": 0}),
    "LFM2 350M": llama_like("lfm2", 16, "1024 4608 16 8 64", 65536, conv_L_cache=3, conv_bias=False, norm_eps=1e-5,
                            block_auto_adjust_ff_dim=False, block_ff_dim=4608,
                            layer_types=["full_attention" if n in (2, 5, 8, 10, 12, 14) else "conv"
                                         for n in range(16)]),
    "Falcon-H1 0.5B": llama_like("falcon_h1", 36, "1024 2048 8 2 64", 32784, mamba_d_ssm=1536, mamba_n_heads=24,
                                 mamba_d_head=64, mamba_d_state=128, mamba_n_groups=1, mamba_d_conv=4,
                                 mamba_conv_bias=True, mamba_expand=2, mamba_chunk_size=128,
                                 tie_word_embeddings=False),
    "Qwen3-Next 80B A3B": llama_like("qwen3_next", 48, "2048 5120 16 2 256", 151936, run=4, num_experts=512,
                                     num_experts_per_tok=10, moe_intermediate_size=512, norm_topk_prob=True,
                                     shared_expert_intermediate_size=512, decoder_sparse_step=1, mlp_only_layers=[],
                                     linear_num_value_heads=32, linear_num_key_heads=16, linear_key_head_dim=128,
                                     linear_value_head_dim=128, linear_conv_kernel_dim=4, partial_rotary_factor=0.25,
                                     full_attention_interval=4, tie_word_embeddings=False),
}  # fmt: skip


def weights_of(config: DecoderConfig, program: Program, format_name: str) -> dict[str, Tensor]:
    """Weights of one shape share their bytes, and are packed each for itself."""
    rng = np.random.default_rng(0)
    made: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        form_name = "F32" if len(shape) == 1 or "router" in name or "conv" in name else format_name
        if form_name != "F32" and shape[-1] % FORMATS[form_name].block_elements:
            form_name = "F16"
        key = form_name, shape
        if key not in made:
            made[key] = random_tensor(form_name, shape, rng)
        return Tensor(name, form_name, shape, made[key].data)

    weights = {name: tensor(name, shape) for name, shape in decoder_shapes(config).items()}
    for name, rope in config.ropes.items():
        values = rope.inverse_frequencies(config.context_tokens).astype(np.float32)
        weights[f"rope.{name}"] = Tensor(f"rope.{name}", "F32", values.shape, values.view(np.uint8))
    return {name: weights[name] for name in needs(program)}


def random_tensor(form_name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    if form_name in ("F32", "F16"):
        values = rng.uniform(-0.05, -0.01, shape).astype(np.float32 if form_name == "F32" else np.float16)
        return Tensor("", form_name, shape, values.reshape(-1).view(np.uint8))
    form = FORMATS[form_name]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // form.block_elements, form.block_bytes), np.uint8)
    blocks[:, : len(SCALES[form_name])] = SCALES[form_name]
    return Tensor("", form_name, shape, blocks.reshape(-1))


def active_bytes(program: Program, weights: dict[str, Tensor]) -> float:
    """That a step of one token reads."""
    total = 0.0
    for each in program.instructions:
        match each:
            case Linear(weights=names) | LinearHeads(weights=names):
                total += sum(weights[name].data.nbytes for name in names)
            case Experts():
                size = sum(weights[name].data.nbytes for expert in each.experts for name in expert.weights)
                total += size * (each.routes.width // 2) / each.count
            case Embed() | _:
                pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a name, or several with commas")
    parser.add_argument("--format", default="Q8_0", choices=list(SCALES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    backend, limit = CpuBackend(), memory_limit_bytes_per_s(given.threads)
    read_at = f"memory is read at {limit / 1e9:.1f} GB/s"
    print(f"{backend.isa}, {given.threads} threads, {given.format}; {read_at}", flush=True)
    print(f"{'model':22} {'layers':>8} {'MB a token':>10} {'decode tok/s':>12} {'share':>6} {'prompt tok/s':>12}")
    tokens = np.random.default_rng(1).integers(0, 32000, (1, 512)).astype(np.int32)
    for name, model in MODELS.items():
        if not any(part.lower() in name.lower() for part in given.only.split(",")):
            continue
        row = HF_ARCHITECTURES[model.config["model_type"]]()
        config = row.read(Fields(Path(name), model.config))
        assert isinstance(config, DecoderConfig)
        program = decoder_program(config)
        weights = weights_of(config, program, "MXFP4" if "gpt-oss" in name else given.format)
        served = Served(backend, program, weights, "int8", given.threads)
        decode, prompt = served.decode_tok_s(tokens[0]), served.prefill_tok_s(tokens[0])
        size = active_bytes(program, weights)
        run = model.config["num_hidden_layers"]
        layers = f"{run}" if run == model.layers else f"{run} of {model.layers}"
        print(f"{name:22} {layers:>8} {size / 1e6:10.0f} {decode:12.1f} {decode * size / limit:6.0%} {prompt:12.0f}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
