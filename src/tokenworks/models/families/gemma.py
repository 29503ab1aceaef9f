"""Gemma (arXiv 2403.08295, 2408.00118, 2503.19786): scaled embeddings, tanh-GELU gates, norm weights stored less one.

Gemma 2    norms before and behind each part, soft caps, a window in every second layer
Gemma 3    no soft caps but q and k normed; five sliding layers with rotary positions of their own for each global one
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenworks.kernels.program import Activation
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward
from tokenworks.models.parts.rope import Rope

_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def _gemma(f: Fields) -> DecoderConfig:
    _refuse_bidirectional(f)
    size = from_hf.head_size(f, 256)
    rope = from_hf.only_rope(f, size)
    attention = from_hf.attention(f, rope, head_size=size, scale=size**-0.5, biased=from_hf.attention_biases(f))
    mixers = [attention] * from_hf.layer_count(f)
    mlp = from_hf.mlp(f, activation="gelu_tanh")  # what the files mean, whatever hidden_act says
    scale = f.integer("hidden_size") ** 0.5
    tied = f.flag("tie_word_embeddings", True)
    return from_hf.decoder(f, "gemma", mixers, mlp, {"global": rope}, tied_head=tied, embedding_scale=scale)


def _gemma2(f: Fields) -> DecoderConfig:
    _refuse_bidirectional(f)
    size = from_hf.head_size(f, 256)
    rope = from_hf.only_rope(f, size)
    windows = from_hf.windows(f, from_hf.sliding(f, lambda number: number % 2 == 0), 4096)
    attention = replace(_attention(f, rope), softcap=softcap(f, "attn_logit_softcapping", 50.0))
    mixers = [replace(attention, window=window) for window in windows]
    cap = softcap(f, "final_logit_softcapping", 30.0)
    mlp = from_hf.mlp(f, activation=activation(f))
    return around(f, "gemma2", mixers, mlp, {"global": rope}, logit_softcap=cap)


def _gemma3(f: Fields) -> DecoderConfig:
    _refuse_bidirectional(f)
    size, pattern = from_hf.head_size(f, 256), f.integer("sliding_window_pattern", 6)
    windows = from_hf.windows(f, from_hf.sliding(f, lambda number: (number + 1) % pattern != 0), 4096)
    ropes = two_ropes(f, size)
    attention = replace(
        _attention(f, ropes["global"]),
        softcap=softcap(f, "attn_logit_softcapping", 0.0),
        qk_norm_epsilon=from_hf.norm_epsilon(f),
    )
    cap = softcap(f, "final_logit_softcapping", 0.0)
    mlp = from_hf.mlp(f, activation=activation(f))
    return around(f, "gemma3", with_ropes(attention, windows, ropes), mlp, ropes, logit_softcap=cap)


def two_ropes(f: Fields, size: int) -> dict[str, Rope]:
    """Of heads of `size`: "local" turns in layers with a window, "global" in the others."""
    parameters = f.section("rope_parameters")
    if parameters is None:
        return {
            "global": from_hf.rope(f, f.section("rope_scaling"), size, f.number("rope_theta", 1e6)),
            "local": Rope(size=size, base=f.number("rope_local_base_freq", 1e4)),
        }
    return {
        "global": from_hf.rope(f, parameters.section("full_attention"), size, 1e6),
        "local": from_hf.rope(f, parameters.section("sliding_attention"), size, 1e4),
    }


def _refuse_bidirectional(f: Fields) -> None:
    f.refuse("use_bidirectional_attention", (False,), "only causal attention is supported for this architecture")


def _attention(f: Fields, rope: Rope) -> Attention:
    return from_hf.attention(
        f,
        rope,
        head_size=from_hf.head_size(f, 256),
        kv_heads=f.integer("num_key_value_heads", 4),
        scale=f.number("query_pre_attn_scalar", 256) ** -0.5,
        biased=from_hf.attention_biases(f),
    )


def around(
    f: Fields,
    architecture: str,
    mixers: Sequence[Attention],
    feed_forwards: FeedForward | Sequence[FeedForward],
    ropes: dict[str, Rope],
    **differences: Any,
) -> DecoderConfig:
    """Of layers with norms around their parts; arguments are from_hf.decoder's."""
    return from_hf.decoder(
        f,
        architecture,
        mixers,
        feed_forwards,
        ropes,
        norms="around",
        tied_head=f.flag("tie_word_embeddings", True),
        embedding_scale=f.integer("hidden_size") ** 0.5,
        **differences,
    )


def activation(f: Fields) -> Activation:
    return f.one_of("hidden_activation", from_hf.ACTIVATIONS, "gelu_pytorch_tanh")


def softcap(f: Fields, key: str, default: float) -> float:
    """Null is off; `default` is for a file that does not say."""
    return f.number(key) if f.has(key) else 0.0 if key in f.table else default


def with_ropes(attention: Attention, windows: list[int], ropes: Mapping[str, Rope]) -> list[Attention]:
    """Layers with a window turn by the encoding "local", the others by "global"."""
    names = ["local" if window else "global" for window in windows]
    return [
        replace(attention, window=window, rope=name, turned=ropes[name].size, turned_scale=ropes[name].scale)
        for window, name in zip(windows, names, strict=True)
    ]


def _gemma_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    scale = f.integer("embedding_length") ** 0.5
    return from_gguf.decoder(f, file, mixers, _mlp_gguf(f, file), {"global": rope}, embedding_scale=scale)


def _gemma2_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    window = f.integer("attention.sliding_window", 4096)
    attention = replace(_attention_gguf(f, file, rope), softcap=f.number("attn_logit_softcapping", 50.0))
    mixers = [replace(attention, window=0 if number % 2 else window) for number in range(from_gguf.layer_count(f))]
    cap = f.number("final_logit_softcapping", 30.0)
    return around_gguf(f, file, mixers, _mlp_gguf(f, file), {"global": rope}, logit_softcap=cap)


def _gemma3_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    count, ropes = from_gguf.layer_count(f), two_ropes_gguf(f, file, from_gguf.head_size(f))
    pattern, window = f.integer("attention.sliding_window_pattern", 6), f.integer("attention.sliding_window")
    attention = replace(_attention_gguf(f, file, ropes["global"]), qk_norm_epsilon=from_gguf.norm_epsilon(f))
    windows = [window if (number + 1) % pattern else 0 for number in range(count)]
    cap = from_hf.softcap(f, "final_logit_softcapping")
    return around_gguf(f, file, with_ropes(attention, windows, ropes), _mlp_gguf(f, file), ropes, logit_softcap=cap)


def _attention_gguf(f: Fields, file: GgufFile, rope: Rope) -> Attention:
    attention = from_gguf.attention(f, file, rope)
    # The 27B models alone divide by the square root of width / heads; the metadata does not say so.
    is_27b = from_gguf.layer_count(f) == _LAYERS_OF_27B[f.prefix.removesuffix(".")]
    scaled = f.integer("embedding_length") / attention.heads if is_27b else attention.head_size
    return replace(attention, scale=scaled**-0.5)


def _mlp_gguf(f: Fields, file: GgufFile) -> Mlp:
    return replace(from_gguf.mlp(f, file), activation="gelu_tanh")


def around_gguf(
    f: Fields,
    file: GgufFile,
    mixers: Sequence[Attention],
    feed_forwards: FeedForward | Sequence[FeedForward],
    ropes: dict[str, Rope],
    **differences: Any,
) -> DecoderConfig:
    """Of layers with norms around their parts; arguments are from_gguf.decoder's."""
    scale = f.integer("embedding_length") ** 0.5
    return from_gguf.decoder(
        f, file, mixers, feed_forwards, ropes, norms="around", embedding_scale=scale, **differences
    )


def two_ropes_gguf(f: Fields, file: GgufFile, local_size: int) -> dict[str, Rope]:
    """As two_ropes; of the heads of layers with a window `local_size` is turned."""
    return {
        "global": from_gguf.rope(f, file, 1e6),
        "local": Rope(size=local_size, base=f.number("rope.freq_base_swa", 1e4)),
    }


_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_NAMES = from_hf.NAMES.names | {f"{LAYER}{ours}": f"model.layers.{{}}.{their}.weight" for ours, their in _NORMS.items()}
_AROUND = replace(from_hf.NAMES, names=_NAMES, norm_offset=1.0)

GEMMA = HfArchitecture(_gemma, replace(from_hf.NAMES, norm_offset=1.0))
GEMMA2 = HfArchitecture(_gemma2, _AROUND)
GEMMA3 = HfArchitecture(_gemma3, _AROUND)
GEMMA_GGUF = GgufArchitecture(_gemma_gguf, from_gguf.NAMES)
GEMMA2_GGUF = GgufArchitecture(_gemma2_gguf, from_gguf.NAMES)
GEMMA3_GGUF = GgufArchitecture(_gemma3_gguf, from_gguf.NAMES)
