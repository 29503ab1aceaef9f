"""Qwen3-Next and Qwen3.5: gated delta nets (arXiv 2412.06464), and in every fourth layer attention that is gated too
and whose heads are turned in part only; experts beside a shared network, or in Qwen3.5's dense models one network.

Behind the last layer one with attention guesses a further token.
"""

from dataclasses import replace

import numpy as np

from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.families import from_gguf, from_hf, mixtures, qwen_moe
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, NEGATIVE_LOGARITHMS, GgufArchitecture, HfArchitecture, Rows
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.delta import DeltaNet
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.multi_token import multi_token_names
from tokenworks.models.parts.part import FeedForward, Mixer

_IN_LAYER = "model.layers.{}."


def _next(f: Fields) -> DecoderConfig:
    mixture = _mixture(f)
    return _decoder(f, "qwen3_next", qwen_moe.layers(f, mixture), mixture)


def _dense(f: Fields) -> DecoderConfig:
    network = from_hf.mlp(f)
    return _decoder(f, "qwen3_5", [network] * from_hf.layer_count(f), network)


def _moe(f: Fields) -> DecoderConfig:
    mixture = _mixture(f)
    return _decoder(f, "qwen3_5_moe", [mixture] * from_hf.layer_count(f), mixture)


def _mixture(f: Fields) -> FeedForward:
    width = f.integer("shared_expert_intermediate_size")
    shared = Mlp(width=width, activation=f.one_of("hidden_act", from_hf.ACTIVATIONS, "silu"))
    return mixtures.mixture(f, normalise=f.flag("norm_topk_prob", True), shared=shared, shared_gated=True)


def _decoder(f: Fields, architecture: str, feed_forwards: list[FeedForward], guessing: FeedForward) -> DecoderConfig:
    """`guessing`: of the layer that guesses further tokens, of which a config says nothing."""
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
    guesser = Layer(mixer=attention, feed_forward=guessing)
    return from_hf.decoder(f, architecture, mixers, feed_forwards, {"global": rope}, multi_token=guesser)


def _next_gguf(file: GgufFile) -> DecoderConfig:
    return _decoder_gguf(file, alternating=False)


def _later_gguf(file: GgufFile) -> DecoderConfig:
    return _decoder_gguf(file, alternating=True)


def _decoder_gguf(file: GgufFile, *, alternating: bool) -> DecoderConfig:
    f = from_gguf.fields(file)
    count, epsilon, interval = from_gguf.layer_count(f), from_gguf.norm_epsilon(f), f.integer(_INTERVAL, 4)
    # Where rotary positions have several axes, texts have the same place along all.
    rope = from_gguf.rope(f, file)
    attention = from_gguf.attention(f, file, rope)
    gate = frozenset({"q_gate"} if "q" in attention.biased else ())
    attention = replace(attention, qk_norm_epsilon=epsilon, gated=True, biased=attention.biased | gate)
    heads, key_heads, values = (f.integer(f"ssm.{key}") for key in ("time_step_rank", "group_count", "inner_size"))
    if heads % key_heads:
        raise f.wrong("ssm.group_count", f"a divisor of ssm.time_step_rank ({heads})")
    if values % heads:
        raise f.wrong("ssm.inner_size", f"a multiple of ssm.time_step_rank ({heads})")
    delta = DeltaNet(
        heads=heads,
        key_heads=key_heads,
        key_size=f.integer("ssm.state_size"),
        value_size=values // heads,
        kernel=f.integer("ssm.conv_kernel"),
        norm_epsilon=epsilon,
        alternating=alternating,
    )
    recurrent = [int((number + 1) % interval != 0) for number in range(count)]
    if f.has(_RECURRENT):
        recurrent = from_gguf.of_layers(f, file, _RECURRENT, count)
    network: FeedForward
    if f.count("expert_count"):
        shared = Mlp(width=f.integer("expert_shared_feed_forward_length"), activation="silu")
        network = mixtures.mixture_gguf(f, file, normalise=True, shared=shared, shared_gated=True)
    else:
        network = from_gguf.mlp(f, file)
    mixers: list[Mixer] = [delta if each else attention for each in recurrent]
    return from_gguf.decoder(f, file, mixers, network, {"global": rope})


_INTERVAL, _RECURRENT = "full_attention_interval", "attention.recurrent_layers"


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
    **multi_token_names(
        _IN_LAYER + "mtp.",
        token_norm="pre_fc_norm_embedding",
        before_norm="pre_fc_norm_hidden",
        join="fc",
        head_norm="norm",
    ),
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
    further_layers=_IN_LAYER,
    guesser=(("mtp.layers.0.", _IN_LAYER), ("mtp.", _IN_LAYER + "mtp.")),
)

QWEN3_NEXT = HfArchitecture(_next, replace(_BASE, names=_BASE.names | _SHARED | _NEXT, rows=_IN_PIECES))
QWEN3_5 = HfArchitecture(_dense, replace(_BASE, names=_BASE.names | _SHARED | _LATER, rows=_GATED))
QWEN3_5_MOE = HfArchitecture(_moe, replace(_BASE, names=_BASE.names | _SHARED | _LATER, rows=_GATED))

_GGUF_SHARED = {
    LAYER + "q_gate": "blk.{}.attn_q.weight",
    LAYER + "q_gate.bias": "blk.{}.attn_q.bias",
    **{LAYER + m: "blk.{}.attn_qkv.weight" for m in ("queries", "keys", "values")},
    LAYER + "gate_z": "blk.{}.attn_gate.weight",
    LAYER + "out": "blk.{}.ssm_out.weight",
    LAYER + "conv": "blk.{}.ssm_conv1d.weight",
    LAYER + "decay": "blk.{}.ssm_a",
    LAYER + "step_bias": "blk.{}.ssm_dt.bias",
    LAYER + "scan_weight": "blk.{}.ssm_norm.weight",
    LAYER + "mlp_norm": "blk.{}.post_attention_norm.weight",
}
_GGUF_BASE = replace(
    qwen_moe.GGUF_FILES, names=qwen_moe.GGUF_FILES.names | _GGUF_SHARED, further_layers="blk.{}.", rows=_GATED
)
_GGUF_NEXT = {LAYER + m: "blk.{}.ssm_ba.weight" for m in ("rates", "steps")}
_GGUF_LATER = {LAYER + "rates": "blk.{}.ssm_beta.weight", LAYER + "steps": "blk.{}.ssm_alpha.weight"}
_GGUF_PIECES = _GATED | {LAYER + m: _pieces(m) for m in ("rates", "steps")}

QWEN3_NEXT_GGUF = GgufArchitecture(
    _next_gguf, replace(_GGUF_BASE, names=_GGUF_BASE.names | _GGUF_NEXT, rows=_GGUF_PIECES)
)
QWEN3_5_GGUF = GgufArchitecture(_later_gguf, replace(_GGUF_BASE, names=_GGUF_BASE.names | _GGUF_LATER))
