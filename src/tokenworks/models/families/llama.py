"""Llama (arXiv 2302.13971, 2407.21783) and those that differ from it in a few numbers.

Mistral (arXiv 2310.06825)     a window in every layer, or in none
SmolLM 3                       no rotary positions in every fourth layer
Phi 3 (arXiv 2404.14219)       q, k, v and gate, up stored as one map each; LongRoPE
"""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import GgufArchitecture, HfArchitecture

_MLP_MAPS = frozenset({"gate", "up", "down"})


def _llama(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f))
    windows = from_hf.windows(f, from_hf.sliding(f, lambda _: False))
    mlp = from_hf.mlp(f, biased=_MLP_MAPS if f.flag("mlp_bias", False) else frozenset())
    return from_hf.decoder(f, "llama", [replace(attention, window=w) for w in windows], mlp, {"global": rope})


def _mistral(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    slides = "sliding_window" not in f.table or f.has("sliding_window")
    windows = from_hf.windows(f, from_hf.sliding(f, lambda _: slides), 4096)
    mixers = [from_hf.attention(f, rope, window=window) for window in windows]
    return from_hf.decoder(f, "mistral", mixers, from_hf.mlp(f), {"global": rope})


def _smollm3(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f, base=2e6)
    count, interval = from_hf.layer_count(f), f.integer("no_rope_layer_interval", 4)
    turned = f.table.get("no_rope_layers")
    if turned is None:
        turned = [int((number + 1) % interval != 0) for number in range(count)]
    if not isinstance(turned, list) or len(turned) < count or not all(each in (0, 1) for each in turned):
        raise f.wrong("no_rope_layers", f"a list of {count} times 0 or 1")
    slides = f.flag("use_sliding_window", False) and f.has("sliding_window")
    windows = from_hf.windows(f, from_hf.sliding(f, lambda number: slides and not turned[number]))
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f))
    mixers = [
        replace(attention, window=window, rope="global" if has else "")
        for window, has in zip(windows, turned[:count], strict=True)
    ]
    mlp = from_hf.mlp(f, biased=_MLP_MAPS if f.flag("mlp_bias", False) else frozenset())
    tied = f.flag("tie_word_embeddings", True)
    return from_hf.decoder(f, "smollm3", mixers, mlp, {"global": rope}, tied_head=tied)


def _phi3(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    windows = from_hf.windows(f, [f.has("sliding_window")] * from_hf.layer_count(f))
    mixers = [from_hf.attention(f, rope, window=window) for window in windows]
    epsilon = from_hf.norm_epsilon(f, 1e-5)
    return from_hf.decoder(f, "phi3", mixers, from_hf.mlp(f), {"global": rope}, norm_epsilon=epsilon)


def of_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    count = from_gguf.layer_count(f)
    mixers = [from_gguf.attention(f, file, rope)] * count
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope})


def _mistral3_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    f.refuse("attention.temperature_scale", (0.0,), "queries that grow with their position are not supported")
    return of_gguf(file)


def _smollm3_gguf(file: GgufFile) -> DecoderConfig:
    """Every fourth layer is without positions; the metadata cannot say otherwise."""
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = from_gguf.attention(f, file, rope)
    count = from_gguf.layer_count(f)
    mixers = [replace(attention, rope="global" if (number + 1) % 4 else "") for number in range(count)]
    return from_gguf.decoder(f, file, mixers, from_gguf.mlp(f, file), {"global": rope})


def _phi3_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = replace(from_gguf.attention(f, file, rope), window=f.count("attention.sliding_window"))
    count = from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, [attention] * count, from_gguf.mlp(f, file), {"global": rope})


_LAYER = "model.layers.{}."
_PHI3_FUSED = {
    **{f"layers.{{}}.{m}": _LAYER + "self_attn.qkv_proj.weight" for m in "qkv"},
    **{f"layers.{{}}.{m}": _LAYER + "mlp.gate_up_proj.weight" for m in ("gate", "up")},
}

LLAMA = HfArchitecture(_llama, from_hf.NAMES)
MISTRAL = HfArchitecture(_mistral, from_hf.NAMES)
SMOLLM3 = HfArchitecture(_smollm3, from_hf.NAMES)
PHI3 = HfArchitecture(_phi3, replace(from_hf.NAMES, names=from_hf.NAMES.names | _PHI3_FUSED))

_PHI3_GGUF_FUSED = {
    **{f"layers.{{}}.{m}": "blk.{}.attn_qkv.weight" for m in "qkv"},
    **{f"layers.{{}}.{m}": "blk.{}.ffn_up.weight" for m in ("gate", "up")},
}
_PAIRED = replace(from_gguf.NAMES, interleaved_rotary=True)
MISTRAL3_GGUF = GgufArchitecture(_mistral3_gguf, _PAIRED)
SMOLLM3_GGUF = GgufArchitecture(_smollm3_gguf, _PAIRED)
PHI3_GGUF = GgufArchitecture(_phi3_gguf, replace(from_gguf.NAMES, names=from_gguf.NAMES.names | _PHI3_GGUF_FUSED))
