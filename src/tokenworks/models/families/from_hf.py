"""What config.json says of a decoder, and what a safetensors checkpoint calls its weights, as far as families share it.

Keys and defaults are those of the transformers library's config classes, both the older spelling (rope_theta,
rope_scaling) and the one of its version 5 (rope_parameters).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tokenworks.kernels.program import Activation
from tokenworks.models.attention import Attention
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Layer, Llama3Scaling, Rope
from tokenworks.models.fields import Fields
from tokenworks.models.files import LAYER, FileNames, weights_and_biases
from tokenworks.models.mlp import Mlp
from tokenworks.models.parts import FeedForward, Mixer

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def decoder(
    f: Fields,
    architecture: str,
    mixers: Attention | Sequence[Mixer],
    feed_forwards: FeedForward | Sequence[FeedForward],
    **differences: Any,
) -> DecoderConfig:
    """`mixers`, `feed_forwards`: one for each layer; a single Attention gets the layers' windows.

    `differences`: fields of DecoderConfig that are read another way than here.
    """
    if isinstance(mixers, Attention):
        differences.setdefault("ropes", {mixers.rope: _only_rope(f, mixers.head_size)})
        mixers = with_windows(f, mixers)
    if not isinstance(feed_forwards, Sequence):
        feed_forwards = [feed_forwards] * len(mixers)
    fields: dict[str, Any] = {
        "vocabulary": f.integer("vocab_size"),
        "context_tokens": f.integer("max_position_embeddings"),
        "width": f.integer("hidden_size"),
        "layers": tuple(Layer(mixer=m, feed_forward=n) for m, n in zip(mixers, feed_forwards, strict=True)),
        "norm_epsilon": f.number("rms_norm_eps", 1e-6),
        **differences,
    }
    fields.setdefault("tied_head", f.flag("tie_word_embeddings", False))
    return DecoderConfig(architecture=architecture, **fields)


def attention(f: Fields, **differences: Any) -> Attention:
    """`differences`: fields of Attention that are read another way than here. No window yet."""
    width, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    fields: dict[str, Any] = {"heads": heads, "rope": "global", **differences}
    fields.setdefault("kv_heads", f.integer("num_key_value_heads", heads))
    fields.setdefault("head_size", f.integer("head_dim", max(1, width // heads)))
    fields.setdefault("scale", fields["head_size"] ** -0.5)
    if heads % fields["kv_heads"]:
        raise f.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if fields["head_size"] % 2:
        raise f.wrong("head_dim", "an even number")
    return Attention(**fields)


def mlp(f: Fields, **differences: Any) -> Mlp:
    """`differences`: fields of Mlp that are read another way than here."""
    fields: dict[str, Any] = {"width": f.integer("intermediate_size"), **differences}
    if "activation" not in fields:
        fields["activation"] = f.one_of("hidden_act", ACTIVATIONS, "silu")
    return Mlp(**fields)


def attention_biases(f: Fields) -> frozenset[str]:
    return frozenset("qkvo") if f.flag("attention_bias", False) else frozenset()


def softcap(f: Fields, key: str) -> float:
    return f.number(key) if f.has(key) else 0.0


def with_windows(f: Fields, part: Attention) -> list[Attention]:
    """One for each layer: those from max_window_layers on slide, or those that layer_types names."""
    count = f.integer("num_hidden_layers", maximum=MAX_LAYERS)
    first = f.table.get("max_window_layers", 0)
    slides = f.table.get("use_sliding_window", False) is True and isinstance(first, int)
    layers = sliding(f, count, [slides and number >= first for number in range(count)])
    window = f.integer("sliding_window") if any(layers) else 0
    return [replace(part, window=window if slides else 0) for slides in layers]


def sliding(f: Fields, count: int, default: list[bool]) -> list[bool]:
    """For each layer, whether it has a window."""
    kinds = f.table.get("layer_types")
    if kinds is None:
        return default
    known = {"full_attention": False, "sliding_attention": True}
    if not isinstance(kinds, list) or len(kinds) != count or not all(str(kind) in known for kind in kinds):
        raise f.wrong("layer_types", f"{count} of {', '.join(known)}")
    return [known[kind] for kind in kinds]


def _only_rope(f: Fields, size: int) -> Rope:
    return rope(f.section("rope_parameters") or f.section("rope_scaling"), size, f.number("rope_theta", 1e4))


def rope(section: Fields | None, size: int, base: float) -> Rope:
    """Of heads of `size`, from {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, ...}; older files say "type"."""
    if section is None:
        return Rope(size=size, base=base)
    section.refuse("partial_rotary_factor", (1, 1.0), "only whole heads can be rotated")
    base = section.number("rope_theta", base)
    readers: dict[str, Callable[[], Rope]] = {
        "default": lambda: Rope(size=size, base=base),
        "linear": lambda: Rope(size=size, base=base, factor=section.number("factor")),
        "llama3": lambda: Rope(size=size, base=base, llama3=_llama3(section)),
    }
    return section.one_of("rope_type" if section.has("rope_type") else "type", readers, "default")()


def _llama3(section: Fields) -> Llama3Scaling:
    return Llama3Scaling(
        factor=section.number("factor"),
        low=section.number("low_freq_factor"),
        high=section.number("high_freq_factor"),
        original_tokens=section.integer("original_max_position_embeddings"),
    )


_IN_LAYER = "model.layers.{}."
_MAPS = {m: f"{_IN_LAYER}self_attn.{m}_proj" for m in "qkvo"} | {
    m: f"{_IN_LAYER}mlp.{m}_proj" for m in ("gate", "up", "down")
}
_NORMS = {
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
NAMES = FileNames(
    {
        "embed": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
        **weights_and_biases(_MAPS),
        **{f"{LAYER}{ours}": f"{_IN_LAYER}{theirs}.weight" for ours, theirs in _NORMS.items()},
    },
    unused=("lm_head.weight", "*.rotary_emb.inv_freq"),  # a tied head is stored twice; frequencies follow from config
)
"""Llama's."""
