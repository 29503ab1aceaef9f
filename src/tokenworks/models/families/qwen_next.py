"""Qwen3-Next and Qwen3.5: gated delta nets (arXiv 2412.06464), and in every fourth layer attention that is gated too
and whose heads are turned in part only; experts beside a shared network, or in Qwen3.5's dense models one network."""

from dataclasses import replace

import numpy as np

from tokenworks.models.attention import Attention
from tokenworks.models.config import DecoderConfig
from tokenworks.models.delta import DeltaNet
from tokenworks.models.families import from_hf, mixtures, qwen_moe
from tokenworks.models.fields import Fields
from tokenworks.models.files import LAYER, NEGATIVE_LOGARITHMS, HfArchitecture, Rows
from tokenworks.models.mlp import Mlp
from tokenworks.models.parts import FeedForward, Mixer

_IN_LAYER = "model.layers.{}."


def _next(f: Fields) -> DecoderConfig:
    return _decoder(f, "qwen3_next", qwen_moe.layers(f, _mixture(f)))


def _dense(f: Fields) -> DecoderConfig:
    return _decoder(f, "qwen3_5", [from_hf.mlp(f)] * from_hf.layer_count(f))


def _moe(f: Fields) -> DecoderConfig:
    return _decoder(f, "qwen3_5_moe", [_mixture(f)] * from_hf.layer_count(f))


def _mixture(f: Fields) -> FeedForward:
    width = f.integer("shared_expert_intermediate_size")
    shared = Mlp(width=width, activation=f.one_of("hidden_act", from_hf.ACTIVATIONS, "silu"))
    return mixtures.mixture(f, normalise=f.flag("norm_topk_prob", True), shared=shared, shared_gated=True)


def _decoder(f: Fields, architecture: str, feed_forwards: list[FeedForward]) -> DecoderConfig:
    epsilon = from_hf.norm_epsilon(f)
    size = from_hf.head_size(f, 256)
    # Where rotary positions have several axes, texts have the same place along all.
    rope = from_hf.only_rope(f, size, share=0.25)
    biased = from_hf.attention_biases(f)
    attention = from_hf.attention(
        f,
        rope,
        biased=biased | {"q_gate"} if biased else biased,
        head_size=size,
        scale=size**-0.5,
        qk_norm_epsilon=epsilon,
        gated=True,
    )
    delta = DeltaNet(
        heads=(heads := f.integer("linear_num_value_heads", 32)),
        key_heads=f.integer("linear_num_key_heads", 16),
        key_size=f.integer("linear_key_head_dim", 128),
        value_size=f.integer("linear_value_head_dim", 128),
        kernel=f.integer("linear_conv_kernel_dim", 4),
        norm_epsilon=epsilon,
    )
    if heads % delta.key_heads:
        raise f.wrong("linear_num_key_heads", f"a divisor of linear_num_value_heads ({heads})")
    f.one_of("hidden_act", {"silu": None}, "silu")
    parts: dict[str, Mixer] = {"linear_attention": delta, "full_attention": attention}
    mixers = [parts[kind] for kind in _kinds(f, list(parts))]
    return from_hf.decoder(f, architecture, mixers, feed_forwards, {"global": rope})


def _kinds(f: Fields, known: list[str]) -> list[str]:
    count, interval = from_hf.layer_count(f), f.integer("full_attention_interval", 4)
    kinds = f.table.get("layer_types")
    if kinds is None:
        return [known[(number + 1) % interval == 0] for number in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in known for kind in kinds):
        raise f.wrong("layer_types", f"{count} of {', '.join(known)}")
    return kinds


def _pieces(piece: str) -> Rows:
    """Rows of one part in a tensor that has, for each key head, all parts one after the other."""

    def rows(mixer: Mixer | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        match mixer:
            case Attention(heads=groups, head_size=size):
                parts = {"q": size, "q_gate": size}
            case DeltaNet(key_heads=groups):
                shared = mixer.heads // groups
                values = shared * mixer.value_size
                parts = {"queries": mixer.key_size, "keys": mixer.key_size, "values": values, "gate_z": values}
                if piece not in parts:
                    parts = {"rates": shared, "steps": shared}
            case _:
                raise AssertionError("only these have such rows")
        names = list(parts)
        before = sum(parts[name] for name in names[: names.index(piece)])
        starts = np.arange(groups) * sum(parts.values()) + before
        return (starts[:, None] + np.arange(parts[piece])).reshape(-1)

    return rows


_DELTA = _IN_LAYER + "linear_attn."
_SHARED = {
    LAYER + "q_gate": _IN_LAYER + "self_attn.q_proj.weight",
    LAYER + "q_gate.bias": _IN_LAYER + "self_attn.q_proj.bias",
    LAYER + "out": _DELTA + "out_proj.weight",
    LAYER + "conv": _DELTA + "conv1d.weight",
    LAYER + "decay": _DELTA + "A_log",
    LAYER + "step_bias": _DELTA + "dt_bias",
    LAYER + "scan_weight": _DELTA + "norm.weight",
}
_NEXT = {
    **{LAYER + m: _DELTA + "in_proj_qkvz.weight" for m in ("queries", "keys", "values", "gate_z")},
    **{LAYER + m: _DELTA + "in_proj_ba.weight" for m in ("rates", "steps")},
}
_LATER = {
    **{LAYER + m: _DELTA + "in_proj_qkv.weight" for m in ("queries", "keys", "values")},
    LAYER + "gate_z": _DELTA + "in_proj_z.weight",
    LAYER + "rates": _DELTA + "in_proj_b.weight",
    LAYER + "steps": _DELTA + "in_proj_a.weight",
}
_GATED = {LAYER + m + end: _pieces(m) for m in ("q", "q_gate") for end in ("", ".bias")}
_IN_PIECES = _GATED | {LAYER + m: _pieces(m) for m in ("queries", "keys", "values", "gate_z", "rates", "steps")}
_BASE = replace(
    qwen_moe.FILES,
    norm_offset=1.0,
    forms={LAYER + "decay": NEGATIVE_LOGARITHMS},
    kernels=frozenset({_DELTA + "conv1d.weight"}),
    unused=(*qwen_moe.FILES.unused, "mtp.*"),
)

QWEN3_NEXT = HfArchitecture(_next, replace(_BASE, names=_BASE.names | _SHARED | _NEXT, rows=_IN_PIECES))
QWEN3_5 = HfArchitecture(_dense, replace(_BASE, names=_BASE.names | _SHARED | _LATER, rows=_GATED))
QWEN3_5_MOE = HfArchitecture(_moe, replace(_BASE, names=_BASE.names | _SHARED | _LATER, rows=_GATED))
