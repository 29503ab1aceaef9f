"""What config.json says of a decoder, and what a safetensors checkpoint calls its weights, as far as families share it.

Keys and defaults are those of the transformers library's config classes, both the older spelling (rope_theta,
rope_scaling) and the one of its version 5 (rope_parameters).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenworks.kernels.program import Activation
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Layer
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.names import LAYER, FileNames, Rows, weights_and_biases
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.rope import Llama3, LongRope, Rope, Yarn, yarn_scale

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}


def decoder(
    f: Fields,
    architecture: str,
    mixers: Sequence[Mixer],
    feed_forwards: FeedForward | Sequence[FeedForward],
    ropes: dict[str, Rope],
    **differences: Any,
) -> DecoderConfig:
    """`mixers`, `feed_forwards`: one for each layer, or one of all.

    `differences`: fields of DecoderConfig that are read another way than here.
    """
    if not isinstance(feed_forwards, Sequence):
        feed_forwards = [feed_forwards] * len(mixers)
    fields: dict[str, Any] = {
        "vocabulary": f.integer("vocab_size"),
        "context_tokens": f.integer("max_position_embeddings"),
        "width": f.integer("hidden_size"),
        "layers": tuple(Layer(mixer=m, feed_forward=n) for m, n in zip(mixers, feed_forwards, strict=True)),
        "ropes": ropes,
        "norm_epsilon": norm_epsilon(f),
        **differences,
    }
    fields.setdefault("tied_head", f.flag("tie_word_embeddings", False))
    return DecoderConfig(architecture=architecture, **fields)


def attention(f: Fields, turned_by: Rope, **differences: Any) -> Attention:
    """With one rotary encoding, "global", and no window. `differences`: fields that are read another way than here."""
    size, heads = head_size(f), f.integer("num_attention_heads")
    fields: dict[str, Any] = {
        "heads": heads,
        "head_size": size,
        "scale": size**-0.5,
        "rope": "global",
        "turned": turned_by.size,
        "turned_scale": turned_by.scale,
        **differences,
    }
    fields.setdefault("kv_heads", f.integer("num_key_value_heads", heads))
    if heads % fields["kv_heads"]:
        raise f.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    return Attention(**fields)


def head_size(f: Fields, default: int | None = None, key: str = "head_dim") -> int:
    """`default`: where the file says none; else the width divided among the heads."""
    size = f.integer(key, default or max(1, f.integer("hidden_size") // f.integer("num_attention_heads")))
    if size % 2:
        raise f.wrong(key, "an even number")
    return size


def norm_epsilon(f: Fields, default: float = 1e-6) -> float:
    return f.number("rms_norm_eps", default)


def mlp(f: Fields, **differences: Any) -> Mlp:
    """`differences`: fields of Mlp that are read another way than here."""
    fields = dict(differences)
    if "width" not in fields:
        fields["width"] = f.integer("intermediate_size")
    if "activation" not in fields:
        fields["activation"] = f.one_of("hidden_act", ACTIVATIONS, "silu")
    return Mlp(**fields)


def attention_biases(f: Fields) -> frozenset[str]:
    return frozenset("qkvo") if f.flag("attention_bias", False) else frozenset()


def multi_token(f: Fields, mixer: Mixer, feed_forward: FeedForward) -> Layer | None:
    """Of several layers that guess, the first: it makes all guesses."""
    return Layer(mixer=mixer, feed_forward=feed_forward) if f.count("num_nextn_predict_layers", 0) else None


def softcap(f: Fields, key: str) -> float:
    return f.number(key) if f.has(key) else 0.0


def layer_count(f: Fields) -> int:
    return f.integer("num_hidden_layers", maximum=MAX_LAYERS)


def sliding(f: Fields, default: Callable[[int], bool]) -> list[bool]:
    """For each layer, whether it has a window: what layer_types says, else `default` of its number."""
    count, kinds = layer_count(f), f.table.get("layer_types")
    if kinds is None:
        return [default(number) for number in range(count)]
    known = {"full_attention": False, "sliding_attention": True}
    if not isinstance(kinds, list) or len(kinds) != count or not all(str(kind) in known for kind in kinds):
        raise f.wrong("layer_types", f"{count} of {', '.join(known)}")
    return [known[kind] for kind in kinds]


def windows(f: Fields, slides: Sequence[bool], default: int | None = None) -> list[int]:
    """For each layer its window, 0 for none."""
    window = f.integer("sliding_window", default) if any(slides) else 0
    return [window if each else 0 for each in slides]


def only_rope(f: Fields, size: int | None = None, base: float = 1e4, share: float = 1.0) -> Rope:
    """Of a model with one rotary encoding."""
    section = f.section("rope_parameters") or f.section("rope_scaling")
    return rope(f, section, head_size(f) if size is None else size, f.number("rope_theta", base), share)


def rope(f: Fields, section: Fields | None, size: int, base: float, share: float = 1.0) -> Rope:
    """Of heads of `size`, from {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, ...}; older files say "type".

    `share` of a head is turned where the file does not say how much."""
    share = (section or f).number("partial_rotary_factor", f.number("partial_rotary_factor", share))
    turned = int(size * share)
    if not 0 < turned <= size or turned % 2:
        raise f.wrong("partial_rotary_factor", f"a share of the head size ({size}) that gives an even number")
    if section is None:
        return Rope(size=turned, base=base)
    base = section.number("rope_theta", base)
    readers: dict[str, Callable[[], Rope]] = {
        "default": lambda: Rope(size=turned, base=base),
        "linear": lambda: Rope(size=turned, base=base, factor=section.number("factor")),
        "dynamic": lambda: Rope(size=turned, base=base),  # stretches only beyond max_position_embeddings
        "llama3": lambda: Rope(size=turned, base=base, stretched=_llama3(section)),
        "yarn": lambda: _yarn(f, section, turned, base),
        "longrope": lambda: _longrope(f, section, turned, base),
        "su": lambda: _longrope(f, section, turned, base),  # what Phi-3's first files call it
    }
    return section.one_of("rope_type" if section.has("rope_type") else "type", readers, "default")()


def _llama3(section: Fields) -> Llama3:
    return Llama3(
        factor=section.number("factor"),
        low=section.number("low_freq_factor"),
        high=section.number("high_freq_factor"),
        original_tokens=section.integer("original_max_position_embeddings"),
    )


def _yarn(f: Fields, section: Fields, turned: int, base: float) -> Rope:
    original = _original_tokens(f, section)
    factor = section.number("factor", f.integer("max_position_embeddings") / original)
    by = Yarn(
        factor=factor,
        fast=section.number("beta_fast", 32),
        slow=section.number("beta_slow", 1),
        original_tokens=original,
        whole=section.flag("truncate", True),
    )
    if section.number("mscale", 0, zero=True) and section.number("mscale_all_dim", 0, zero=True):
        scale = yarn_scale(factor, section.number("mscale")) / yarn_scale(factor, section.number("mscale_all_dim"))
    else:
        scale = yarn_scale(factor)
    return Rope(size=turned, base=base, stretched=by, scale=section.number("attention_factor", scale))


def _longrope(f: Fields, section: Fields, turned: int, base: float) -> Rope:
    original = _original_tokens(f, section)
    factor = section.number("factor", f.integer("max_position_embeddings") / original)
    by = LongRope(
        short=section.numbers("short_factor", turned // 2),
        long=section.numbers("long_factor", turned // 2),
        original_tokens=original,
    )
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Rope(size=turned, base=base, stretched=by, scale=section.number("attention_factor", scale))


def _original_tokens(f: Fields, section: Fields) -> int:
    key = "original_max_position_embeddings"
    return section.integer(key) if section.has(key) else f.integer(key, f.integer("max_position_embeddings"))


def _halves(of: str) -> Rows:
    """The turned rows of each head from pairs (0, 1), (2, 3), ... to all first members, then all second ones."""

    def rows(mixer: Mixer | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        assert isinstance(mixer, Attention)
        turned = np.arange(mixer.turned).reshape(-1, 2).T.reshape(-1)
        head = np.concatenate([turned, np.arange(mixer.turned, mixer.head_size)])
        heads = mixer.heads if of == "q" else mixer.kv_heads
        starts = np.arange(heads) * mixer.head_size
        return np.asarray(starts[:, None] + head, np.int64).reshape(-1)

    return rows


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

PAIRED_ROWS = {LAYER + m + kind: _halves(m) for m in "qk" for kind in ("", ".bias")}
"""For FileNames.rows, where the two rows of a rotary pair follow each other."""
