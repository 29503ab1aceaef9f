"""Granite (arXiv 2405.04324): Llama whose embeddings, residual sums, scores and logits are scaled.

Granite 3, dense or with experts
Granite 4 hybrid    Mamba-2 (arXiv 2405.21060) in most layers, attention without positions or with in the others;
                    experts beside a network that all tokens pass, or that network alone
"""

from dataclasses import replace
from typing import Any

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import bamba, from_gguf, from_hf, mamba, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.files.stacked import Stack
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.rope import Rope


def _dense(f: Fields) -> DecoderConfig:
    mlp = from_hf.mlp(f, biased=frozenset({"gate", "up", "down"}) if f.flag("mlp_bias", False) else frozenset())
    return _all_attention(f, "granite", mlp)


def _experts(f: Fields) -> DecoderConfig:
    shared = f.count("shared_intermediate_size")
    network = _mixture(f, from_hf.mlp(f, width=shared) if shared else None)
    return _all_attention(f, "granitemoe", network)


def _all_attention(f: Fields, architecture: str, network: FeedForward) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    attention = from_hf.attention(
        f, rope, biased=from_hf.attention_biases(f), scale=f.number("attention_multiplier", 1.0)
    )
    mixers = [attention] * from_hf.layer_count(f)
    return from_hf.decoder(f, architecture, mixers, network, {"global": rope}, **_factors(f))


def _hybrid(f: Fields) -> DecoderConfig:
    turned = f.one_of("position_embedding_type", {"rope": True, "nope": False}, "nope")
    rope = from_hf.only_rope(f)
    attention = from_hf.attention(
        f,
        rope,
        rope="global" if turned else "",
        biased=from_hf.attention_biases(f),
        scale=f.number("attention_multiplier", 1.0),
    )
    known: dict[str, Mixer] = {"linear_attention": (part := bamba.mamba2(f, from_hf.norm_epsilon(f))), "mamba": part}
    known |= {"full_attention": attention, "attention": attention}
    count = from_hf.layer_count(f)
    kinds = f.table.get("layer_types") or ["mamba"] * count
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in known for kind in kinds):
        raise f.wrong("layer_types", f"{count} of {', '.join(known)}")
    shared = from_hf.mlp(f, width=f.integer("shared_intermediate_size", 1024))
    network = shared if f.table.get("num_local_experts") == 0 else _mixture(f, shared)
    mixers = [known[kind] for kind in kinds]
    return from_hf.decoder(f, "granitemoehybrid", mixers, network, _used(rope, mixers), **_factors(f))


def _mixture(f: Fields, shared: Mlp | None) -> FeedForward:
    experts, width = f.integer("num_local_experts", 8, maximum=MOST_EXPERTS), f.integer("intermediate_size")
    return mixtures.mixture(f, experts=experts, width=width, normalise=True, shared=shared)


def _factors(f: Fields) -> dict[str, Any]:
    return _scaled(
        sums=f.number("residual_multiplier", 1.0),
        embeddings=f.number("embedding_multiplier", 1.0),
        logits=f.number("logits_scaling", 1.0),
        norm_epsilon=from_hf.norm_epsilon(f),
    )


def _scaled(sums: float, embeddings: float, logits: float, norm_epsilon: float) -> dict[str, Any]:
    """x + m * part(norm(x)) over all layers is m * (x / m + part(norm(x))), and an RMS norm undoes the factor in
    front."""
    return {
        "embedding_scale": embeddings / sums,
        "norm_epsilon": norm_epsilon / sums**2,
        "logit_scale": 1 / logits,
    }


def _used(rope: Rope, mixers: list[Mixer]) -> dict[str, Rope]:
    return {"global": rope} if any(getattr(mixer, "rope", "") for mixer in mixers) else {}


def _gguf(file: GgufFile) -> DecoderConfig:
    """Layers that have no K and V are Mamba-2's."""
    f = from_gguf.fields(file)
    rope, count = from_gguf.rope(f, file), from_gguf.layer_count(f)
    kv_heads = from_gguf.of_layers(f, file, "attention.head_count_kv", count)
    mixers: list[Mixer] = [
        replace(
            (attention := from_gguf.attention(f, file, rope, kv_heads=heads)),
            rope="global" if f.flag("rope.scaling.finetuned", True) else "",
            scale=f.number("attention.scale", attention.scale),
        )
        if heads
        else mamba.mamba2_gguf(f, file)
        for heads in kv_heads
    ]
    network: FeedForward
    if f.count("expert_count"):
        width = f.count("expert_shared_feed_forward_length")
        shared = Mlp(width=width, activation="silu") if width else None
        network = mixtures.mixture_gguf(f, file, normalise=True, shared=shared)
    else:
        network = from_gguf.mlp(f, file)
    factors = _scaled(
        sums=f.number("residual_scale", 1.0),
        embeddings=f.number("embedding_scale", 1.0),
        logits=f.number("logit_scale", 1.0),
        norm_epsilon=from_gguf.norm_epsilon(f),
    )
    return from_gguf.decoder(f, file, mixers, network, _used(rope, mixers), **factors)


_IN_LAYER = "model.layers.{}."
_SHARED = _IN_LAYER + "shared_mlp."
_EXPERTS = _IN_LAYER + "block_sparse_moe."
_EACH = {m: f"{_EXPERTS}experts.{{}}.{theirs}.weight" for m, theirs in mixtures.HF_MAPS.items()}
_STACKS = (
    Stack(_EXPERTS + "input_linear.weight", (_EACH["gate"], _EACH["up"])),
    Stack(_EXPERTS + "output_linear.weight", (_EACH["down"],)),
)
_MIXED = {
    **{f"{LAYER}shared.{m}": _SHARED + "input_linear.weight" for m in ("gate", "up")},
    f"{LAYER}shared.down": _SHARED + "output_linear.weight",
    **mixtures.names(_EXPERTS + "experts", mixtures.HF_MAPS),
    LAYER + "router": _EXPERTS + "router.layer.weight",
}
_SHARED_ALONE = {
    **{LAYER + m: _SHARED + "input_linear.weight" for m in ("gate", "up")},
    LAYER + "down": _SHARED + "output_linear.weight",
}
_GGUF_FILES = replace(
    from_gguf.NAMES,
    names=from_gguf.NAMES.names | mixtures.GGUF_NAMES | mamba.GGUF_NAMES,
    stacks=mixtures.GGUF_STACKS,
    reshaped=mamba.GGUF_RESHAPED,
    interleaved_rotary=True,
)

GRANITE = HfArchitecture(_dense, from_hf.NAMES)
GRANITE_MOE = HfArchitecture(_experts, replace(from_hf.NAMES, names=from_hf.NAMES.names | _MIXED, stacks=_STACKS))
GRANITE_HYBRID = HfArchitecture(
    _hybrid, replace(bamba.NAMES, names=bamba.NAMES.names | _MIXED | _SHARED_ALONE, stacks=_STACKS)
)
GRANITE_GGUF = GgufArchitecture(_gguf, _GGUF_FILES)
"""Of all three."""
