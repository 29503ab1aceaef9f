"""Qwen 2 (arXiv 2407.10671): Llama with biases on q, k, v. Qwen 3 (arXiv 2505.09388): Llama with q and k normed."""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.fields import Fields
from tokenworks.models.files import GgufArchitecture, HfArchitecture
from tokenworks.models.gguf import GgufFile


def _qwen2(f: Fields) -> DecoderConfig:
    return from_hf.decoder(f, "qwen2", from_hf.attention(f, biased=frozenset("qkv")), from_hf.mlp(f))


def _qwen3(f: Fields) -> DecoderConfig:
    attention = from_hf.attention(
        f,
        biased=from_hf.attention_biases(f),
        head_size=f.integer("head_dim", 128),
        qk_norm_epsilon=f.number("rms_norm_eps", 1e-6),
    )
    return from_hf.decoder(f, "qwen3", attention, from_hf.mlp(f))


def _qwen2_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    return from_gguf.decoder(f, file, from_gguf.attention(f, file), from_gguf.mlp(f, file))


def _qwen3_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    attention = replace(from_gguf.attention(f, file), qk_norm_epsilon=from_gguf.norm_epsilon(f))
    return from_gguf.decoder(f, file, attention, from_gguf.mlp(f, file))


QWEN2 = HfArchitecture(_qwen2, from_hf.NAMES)
QWEN3 = HfArchitecture(_qwen3, from_hf.NAMES)
QWEN2_GGUF = GgufArchitecture(_qwen2_gguf, from_gguf.NAMES)
QWEN3_GGUF = GgufArchitecture(_qwen3_gguf, from_gguf.NAMES)
