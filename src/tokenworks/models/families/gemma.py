"""Gemma 3 (arXiv 2503.19786): norms before and behind each part, scaled embeddings, tanh-GELU gates, q and k normed,
five sliding-window layers with rotary positions of their own for each global one."""

from dataclasses import replace

from tokenworks.models.attention import Attention
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Rope
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.fields import Fields
from tokenworks.models.files import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.gguf import GgufFile

_LAYERS_OF_27B = 62


def _read(f: Fields) -> DecoderConfig:
    f.refuse("use_bidirectional_attention", (False,), "only causal attention is supported for this architecture")
    size = f.integer("head_dim", 256)
    pattern = f.integer("sliding_window_pattern", 6)
    count = f.integer("num_hidden_layers", 26, maximum=MAX_LAYERS)
    sliding = from_hf.sliding(f, count, [(number + 1) % pattern != 0 for number in range(count)])
    window = f.integer("sliding_window", 4096) if any(sliding) else 0
    parameters = f.section("rope_parameters")
    if parameters is None:
        ropes = {
            "global": from_hf.rope(f.section("rope_scaling"), size, f.number("rope_theta", 1e6)),
            "local": Rope(size=size, base=f.number("rope_local_base_freq", 1e4)),
        }
    else:
        ropes = {
            "global": from_hf.rope(parameters.section("full_attention"), size, 1e6),
            "local": from_hf.rope(parameters.section("sliding_attention"), size, 1e4),
        }
    attention = from_hf.attention(
        f,
        head_size=size,
        kv_heads=f.integer("num_key_value_heads", 4),
        scale=f.number("query_pre_attn_scalar", 256) ** -0.5,
        biased=from_hf.attention_biases(f),
        softcap=from_hf.softcap(f, "attn_logit_softcapping"),
        qk_norm_epsilon=f.number("rms_norm_eps", 1e-6),
    )
    activation = f.one_of("hidden_activation", from_hf.ACTIVATIONS, "gelu_pytorch_tanh")
    return from_hf.decoder(
        f,
        "gemma3",
        _layers(attention, sliding, window),
        from_hf.mlp(f, activation=activation),
        ropes=ropes,
        tied_head=f.flag("tie_word_embeddings", True),
        sandwich_norms=True,
        embedding_scale=f.integer("hidden_size") ** 0.5,
        logit_softcap=from_hf.softcap(f, "final_logit_softcapping"),
    )


def _read_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    attention = from_gguf.attention(f, file)
    width, count = f.integer("embedding_length"), f.integer("block_count", maximum=MAX_LAYERS)
    pattern = f.integer("attention.sliding_window_pattern", 6)
    # The 27B model alone divides by the square root of width / heads; the metadata does not say so.
    scaled = width / attention.heads if count == _LAYERS_OF_27B else attention.head_size
    attention = replace(attention, scale=scaled**-0.5, qk_norm_epsilon=from_gguf.norm_epsilon(f))
    sliding = [(number + 1) % pattern != 0 for number in range(count)]
    return from_gguf.decoder(
        f,
        file,
        _layers(attention, sliding, f.integer("attention.sliding_window")),
        replace(from_gguf.mlp(f, file), activation="gelu_tanh"),
        ropes={
            "global": from_gguf.rope(f, file, attention.head_size, 1e6),
            "local": Rope(size=attention.head_size, base=f.number("rope.freq_base_swa", 1e4)),
        },
        sandwich_norms=True,
        embedding_scale=width**0.5,
        logit_softcap=f.number("final_logit_softcapping") if f.has("final_logit_softcapping") else 0.0,
    )


def _layers(attention: Attention, sliding: list[bool], window: int) -> list[Attention]:
    return [
        replace(attention, window=window, rope="local") if slides else replace(attention, rope="global")
        for slides in sliding
    ]


_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_NAMES = from_hf.NAMES.names | {f"{LAYER}{ours}": f"model.layers.{{}}.{their}.weight" for ours, their in _NORMS.items()}

GEMMA3 = HfArchitecture(_read, replace(from_hf.NAMES, names=_NAMES, norm_offset=1.0))
GEMMA3_GGUF = GgufArchitecture(_read_gguf, from_gguf.NAMES)
