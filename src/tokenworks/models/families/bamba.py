"""Bamba: Llama's shape with Mamba-2 (arXiv 2405.21060) in most layers, and attention that turns a part of its heads.

Granite 4 hybrid calls the same things by the same names (families/granite.py).
"""

from dataclasses import replace

from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_hf, mamba
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.names import LAYER, NEGATIVE_LOGARITHMS, HfArchitecture, weights_and_biases
from tokenworks.models.parts.mamba import Mamba2
from tokenworks.models.parts.part import Mixer


def mamba2(f: Fields, norm_epsilon: float) -> Mamba2:
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
        norm_epsilon=norm_epsilon,
        biased=frozenset(biased | ({"conv"} if f.flag("mamba_conv_bias", True) else set())),
    )


def _bamba(f: Fields) -> DecoderConfig:
    count, places = from_hf.layer_count(f), f.table.get("attn_layer_indices") or []
    if not isinstance(places, list) or not all(isinstance(n, int) and 0 <= n < count for n in places):
        raise f.wrong("attn_layer_indices", f"a list of layers, from 0 to {count - 1}")
    rope, epsilon = from_hf.only_rope(f, share=0.5), from_hf.norm_epsilon(f, 1e-5)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f))
    mixers: list[Mixer] = [attention if number in places else mamba2(f, epsilon) for number in range(count)]
    mlp = from_hf.mlp(f, biased=frozenset({"gate", "up", "down"}) if f.flag("mlp_bias", False) else frozenset())
    return from_hf.decoder(f, "bamba", mixers, mlp, {"global": rope}, norm_epsilon=epsilon)


_IN_LAYER = "model.layers.{}."
_MAMBA = _IN_LAYER + "mamba."
NAMES = replace(
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

BAMBA = HfArchitecture(_bamba, replace(NAMES, names=NAMES.names | _BAMBA))
