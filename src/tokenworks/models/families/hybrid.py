"""Decoders in the shape of Llama whose mixers are mostly Mamba-2's (arXiv 2405.21060), with attention in some layers.

Bamba        attention turns a part of its heads
Granite 4    attention without positions or with; factors as Granite 3's; experts beside a network that all tokens pass
"""

from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_hf, mamba, mixtures
from tokenworks.models.fields import Fields
from tokenworks.models.files import LAYER, NEGATIVE_LOGARITHMS, HfArchitecture, weights_and_biases
from tokenworks.models.mamba import Mamba2
from tokenworks.models.parts import FeedForward, Mixer
from tokenworks.models.stacked import Stack


def _mamba2(f: Fields) -> Mamba2:
    inner = f.integer("mamba_expand", 2) * f.integer("hidden_size")
    heads = f.integer("mamba_n_heads", 128)
    size = inner // heads if f.table.get("mamba_d_head", "auto") == "auto" else f.integer("mamba_d_head")
    if heads * size != inner:
        raise f.wrong("mamba_d_head", f"mamba_expand * hidden_size / mamba_n_heads ({inner / heads:g})")
    biased = {"in", "out"} if f.flag("mamba_proj_bias", False) else set()
    return mamba.mamba2(
        f,
        heads=heads,
        head_size=size,
        groups=f.integer("mamba_n_groups", 1),
        state_size=f.integer("mamba_d_state", 256),
        kernel=f.integer("mamba_d_conv", 4),
        norm_epsilon=from_hf.norm_epsilon(f),
        biased=frozenset(biased | ({"conv"} if f.flag("mamba_conv_bias", True) else set())),
    )


def _bamba(f: Fields) -> DecoderConfig:
    count, places = from_hf.layer_count(f), f.table.get("attn_layer_indices") or []
    if not isinstance(places, list) or not all(isinstance(n, int) and 0 <= n < count for n in places):
        raise f.wrong("attn_layer_indices", f"a list of layers, from 0 to {count - 1}")
    rope = from_hf.only_rope(f, share=0.5)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f))
    mixers: list[Mixer] = [attention if number in places else _mamba2(f) for number in range(count)]
    mlp = from_hf.mlp(f, biased=frozenset({"gate", "up", "down"}) if f.flag("mlp_bias", False) else frozenset())
    return from_hf.decoder(f, "bamba", mixers, mlp, {"global": rope})


def _granite(f: Fields) -> DecoderConfig:
    turned = f.one_of("position_embedding_type", {"rope": True, "nope": False}, "nope")
    rope = from_hf.only_rope(f)
    attention = from_hf.attention(
        f,
        rope,
        rope="global" if turned else "",
        biased=from_hf.attention_biases(f),
        scale=f.number("attention_multiplier", 1.0),
    )
    known: dict[str, Mixer] = {"linear_attention": (part := _mamba2(f)), "mamba": part}
    known |= {"full_attention": attention, "attention": attention}
    count = from_hf.layer_count(f)
    kinds = f.table.get("layer_types") or ["mamba"] * count
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in known for kind in kinds):
        raise f.wrong("layer_types", f"{count} of {', '.join(known)}")
    shared = from_hf.mlp(f, width=f.integer("shared_intermediate_size", 1024))
    network: FeedForward = shared
    if f.table.get("num_local_experts") != 0:
        experts, width = f.integer("num_local_experts", 8, maximum=MOST_EXPERTS), f.integer("intermediate_size")
        network = mixtures.mixture(f, experts=experts, width=width, normalise=True, shared=shared)
    # As in families/llama.py: the factor on what joins the stream is taken out of the embeddings.
    sums = f.number("residual_multiplier", 1.0)
    return from_hf.decoder(
        f,
        "granitemoehybrid",
        [known[kind] for kind in kinds],
        network,
        {"global": rope} if turned and attention in [known[kind] for kind in kinds] else {},
        embedding_scale=f.number("embedding_multiplier", 1.0) / sums,
        norm_epsilon=from_hf.norm_epsilon(f) / sums**2,
        logit_scale=1 / f.number("logits_scaling", 1.0),
    )


_IN_LAYER = "model.layers.{}."
_MAMBA = _IN_LAYER + "mamba."
_BASE = replace(
    from_hf.NAMES,
    names={
        **from_hf.NAMES.names,
        **weights_and_biases({"in": _MAMBA + "in_proj", "out": _MAMBA + "out_proj", "conv": _MAMBA + "conv1d"}),
        LAYER + "decay": _MAMBA + "A_log",
        LAYER + "step_bias": _MAMBA + "dt_bias",
        LAYER + "skip": _MAMBA + "D",
        LAYER + "scan_weight": _MAMBA + "norm.weight",
    },
    forms={LAYER + "decay": NEGATIVE_LOGARITHMS},
    kernels=frozenset({_MAMBA + "conv1d.weight"}),
)
_BAMBA = {
    "norm": "model.final_layernorm.weight",
    LAYER + "mlp_norm": _IN_LAYER + "pre_ff_layernorm.weight",
    **weights_and_biases({m: f"{_IN_LAYER}feed_forward.{m}_proj" for m in ("gate", "up", "down")}),
}
_SHARED = _IN_LAYER + "shared_mlp."
_EXPERTS = _IN_LAYER + "block_sparse_moe."
_GRANITE = {
    **{LAYER + of + m: _SHARED + "input_linear.weight" for of in ("", "shared.") for m in ("gate", "up")},
    **{LAYER + of + "down": _SHARED + "output_linear.weight" for of in ("", "shared.")},
    **mixtures.names(_EXPERTS + "experts", mixtures.HF_MAPS),
    LAYER + "router": _EXPERTS + "router.layer.weight",
}


def _stacks() -> tuple[Stack, ...]:
    each = {m: f"{_EXPERTS}experts.{{}}.{theirs}.weight" for m, theirs in mixtures.HF_MAPS.items()}
    return (
        Stack(_EXPERTS + "input_linear.weight", (each["gate"], each["up"])),
        Stack(_EXPERTS + "output_linear.weight", (each["down"],)),
    )


BAMBA = HfArchitecture(_bamba, replace(_BASE, names=_BASE.names | _BAMBA))
GRANITE_HYBRID = HfArchitecture(_granite, replace(_BASE, names=_BASE.names | _GRANITE, stacks=_stacks()))
