"""Qwen 2 (arXiv 2407.10671): Llama with biases on q, k, v. Qwen 3 (arXiv 2505.09388): Llama with q and k normed."""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import GgufArchitecture, HfArchitecture


def _qwen2(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    mixers = [from_hf.attention(f, rope, biased=frozenset("qkv"), window=window) for window in windows(f)]
    return from_hf.decoder(f, "qwen2", mixers, from_hf.mlp(f), {"global": rope})


def _qwen3(f: Fields) -> DecoderConfig:
    size = from_hf.head_size(f, 128)
    rope = from_hf.only_rope(f, size)
    attention = from_hf.attention(
        f,
        rope,
        head_size=size,
        scale=size**-0.5,
        biased=from_hf.attention_biases(f),
        qk_norm_epsilon=from_hf.norm_epsilon(f),
    )
    mixers = [replace(attention, window=window) for window in windows(f)]
    return from_hf.decoder(f, "qwen3", mixers, from_hf.mlp(f), {"global": rope})


def windows(f: Fields) -> list[int]:
    """Layers from max_window_layers on slide, if any do."""
    first = f.table.get("max_window_layers", 0)
    slides = f.table.get("use_sliding_window", False) is True and isinstance(first, int)
    return from_hf.windows(f, from_hf.sliding(f, lambda number: slides and number >= first))


def _qwen2_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope})


def _qwen3_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = replace(from_gguf.attention(f, file, rope), qk_norm_epsilon=from_gguf.norm_epsilon(f))
    mixers = [attention] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope})


QWEN2 = HfArchitecture(_qwen2, from_hf.NAMES)
QWEN3 = HfArchitecture(_qwen3, from_hf.NAMES)
QWEN2_GGUF = GgufArchitecture(_qwen2_gguf, from_gguf.NAMES)
QWEN3_GGUF = GgufArchitecture(_qwen3_gguf, from_gguf.NAMES)
