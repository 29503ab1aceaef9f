"""Reads a GGUF file's metadata into a ModelConfig.

Keys are listed in ggml's docs/gguf.md; what files leave unsaid follows llama.cpp's loader (src/llama-model.cpp).
"""

from typing import Any

from tokenworks.kernels.formats import dequantise
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, DecoderLayer, Rope
from tokenworks.models.fields import Fields
from tokenworks.models.gguf import GgufFile
from tokenworks.protocol.errors import ModelError

_LAYERS_OF_GEMMA3_27B = 62


def llama(file: GgufFile) -> DecoderConfig:
    return _decoder(file, "llama")


def qwen2(file: GgufFile) -> DecoderConfig:
    return _decoder(file, "qwen2")


def qwen3(file: GgufFile) -> DecoderConfig:
    return _decoder(file, "qwen3", qk_norm=True)


def gemma3(file: GgufFile) -> DecoderConfig:
    f = Fields(file.path, file.metadata, "gemma3.")
    width, heads, count = _sizes(f)
    pattern, window = f.integer("attention.sliding_window_pattern", 6), f.integer("attention.sliding_window")
    # The 27B model alone divides by the square root of width / heads; the metadata does not say so.
    scaled = width / heads if count == _LAYERS_OF_GEMMA3_27B else _head_size(f)
    return _decoder(
        file,
        "gemma3",
        layers=tuple(
            DecoderLayer(window=window, rope="local")
            if (number + 1) % pattern
            else DecoderLayer(window=0, rope="global")
            for number in range(count)
        ),
        ropes={
            "global": _rope(file, f, 1e6),
            "local": Rope(base=f.number("rope.freq_base_swa", 1e4)),
        },
        activation="gelu_tanh",
        attention_scale=scaled**-0.5,
        qk_norm=True,
        sandwich_norms=True,
        embedding_scale=width**0.5,
        logit_softcap=f.number("final_logit_softcapping") if f.has("final_logit_softcapping") else 0.0,
    )


def _decoder(file: GgufFile, architecture: str, **differences: Any) -> DecoderConfig:
    """What all decoders share; `differences` are fields of DecoderConfig that the architecture reads its own way."""
    f = Fields(file.path, file.metadata, architecture + ".")
    f.refuse("expert_count", (0,), "mixtures of experts are not supported")
    width, heads, count = _sizes(f)
    head_size, kv_heads = _head_size(f), f.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise f.wrong("attention.head_count_kv", f"a divisor of attention.head_count ({heads})")
    f.refuse("attention.value_length", (head_size,), f"it must equal the key length ({head_size})")
    f.refuse("rope.dimension_count", (head_size,), f"only whole heads ({head_size}) can be rotated")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing.")
    maps = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    maps |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    fields: dict[str, Any] = {
        "layers": (DecoderLayer(window=0, rope="global"),) * count,
        "ropes": {"global": _rope(file, f, 1e4)} if "ropes" not in differences else None,
        "activation": "silu",
        "attention_scale": head_size**-0.5,
        **differences,
    }
    return DecoderConfig(
        architecture=architecture,
        vocabulary=embedding.shape[0],
        context_tokens=f.integer("context_length"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_width=f.integer("feed_forward_length"),
        norm_epsilon=f.number("attention.layer_norm_rms_epsilon"),
        tied_head="output.weight" not in file.tensors,
        biased=frozenset(m for m, name in maps.items() if f"blk.0.{name}.bias" in file.tensors),
        **fields,
    )


def _sizes(f: Fields) -> tuple[int, int, int]:
    """Width, heads, layers."""
    return (
        f.integer("embedding_length"),
        f.integer("attention.head_count"),
        f.integer("block_count", maximum=MAX_LAYERS),
    )


def _head_size(f: Fields) -> int:
    width, heads, _ = _sizes(f)
    size = f.integer("attention.key_length", max(1, width // heads))
    if size % 2:
        raise f.wrong("attention.key_length", "an even number")
    return size


def _rope(file: GgufFile, f: Fields, base: float) -> Rope:
    base = f.number("rope.freq_base", base)
    factor_of = {"none": lambda: 1.0, "linear": lambda: f.number("rope.scaling.factor")}
    divisors: tuple[float, ...] = ()
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is not None:
        divisors = tuple(dequantise(tensor).tolist())
        if len(divisors) != _head_size(f) // 2 or not all(value > 0 for value in divisors):
            raise ModelError(f"{file.path}: rope_freqs.weight must be {_head_size(f) // 2} positive numbers.")
    return Rope(base=base, factor=f.one_of("rope.scaling.type", factor_of, "none")(), divisors=divisors)
