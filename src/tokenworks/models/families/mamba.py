"""Models of Mamba-2 layers (arXiv 2405.21060), alone or among others.

Mamba 2                            nothing else
Nemotron-H (arXiv 2504.03624)      layers of one part each: Mamba-2, attention without positions, an MLP with relu²,
Nemotron 3 Nano                    or experts, routed as DeepSeek-V3's (arXiv 2412.19437), beside a shared MLP
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Layer
from tokenworks.models.families import from_gguf, from_hf, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import (
    LAYER,
    NEGATIVE_LOGARITHMS,
    FileNames,
    GgufArchitecture,
    HfArchitecture,
    weights_and_biases,
)
from tokenworks.models.files.stacked import Stack
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.mamba import Mamba2
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.rope import Rope

CONTEXT_TOKENS = 1 << 17
"""Of models that know no positions and name no limit."""


def mamba2(f: Fields, **differences: Any) -> Mamba2:
    """`differences`: fields of Mamba2 that are read another way than here."""
    maps = {"in", "out"} if f.flag("use_bias", False) else set()
    f.one_of("hidden_act", {"silu": None}, "silu")
    part = Mamba2(
        **{
            "groups": f.integer("n_groups", 8),
            "kernel": f.integer("conv_kernel", 4),
            "norm_epsilon": f.number("layer_norm_epsilon", 1e-5),
            "step_range": step_range(f, "time_step_limit"),
            "biased": frozenset(maps | ({"conv"} if f.flag("use_conv_bias", True) else set())),
            **differences,
        }
    )
    if part.heads % part.groups:
        raise f.wrong("n_groups", f"a divisor of the number of heads ({part.heads})")
    if part.kernel < 2:
        raise f.wrong("conv_kernel", "2 or more")
    return part


def step_range(f: Fields, key: str) -> tuple[float, float]:
    """From [0.0, Infinity], where infinity is a JSON extension or {"__float__": "Infinity"}."""
    if not f.has(key):
        return 0.0, math.inf
    value = f.table[key]
    if isinstance(value, list) and len(value) == 2:
        low, high = (float(v["__float__"]) if isinstance(v, dict) and v.keys() == {"__float__"} else v for v in value)
        if all(isinstance(v, int | float) for v in (low, high)) and 0 <= low < high:
            return float(low), float(high)
    raise f.wrong(key, "two rising numbers")


def mamba2_gguf(f: Fields, file: GgufFile) -> Mamba2:
    heads, inner = f.integer("ssm.time_step_rank"), f.integer("ssm.inner_size")
    groups, kernel = f.integer("ssm.group_count"), f.integer("ssm.conv_kernel")
    if inner % heads:
        raise f.wrong("ssm.time_step_rank", f"a divisor of ssm.inner_size ({inner})")
    if heads % groups:
        raise f.wrong("ssm.group_count", f"a divisor of ssm.time_step_rank ({heads})")
    if kernel < 2:
        raise f.wrong("ssm.conv_kernel", "2 or more")
    return Mamba2(
        heads=heads,
        head_size=inner // heads,
        groups=groups,
        state_size=f.integer("ssm.state_size"),
        kernel=kernel,
        norm_epsilon=norm_epsilon_gguf(f),
        biased=from_gguf.biased(file, _GGUF_MAPS),
    )


def norm_epsilon_gguf(f: Fields) -> float:
    """Older files of Nemotron-H have the other key only."""
    return f.number("attention.layer_norm_rms_epsilon", f.number("attention.layer_norm_epsilon", 1e-5))


def _mamba2_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    count, context = from_gguf.layer_count(f), min(f.integer("context_length"), CONTEXT_TOKENS)
    return from_gguf.decoder(f, file, [mamba2_gguf(f, file)] * count, [None] * count, {}, context_tokens=context)


def _mamba2(f: Fields) -> DecoderConfig:
    width, expand = f.integer("hidden_size", 4096), f.integer("expand", 2)
    part = mamba2(
        f,
        heads=f.integer("num_heads", 128),
        head_size=f.integer("head_dim", 64),
        state_size=f.integer("state_size", 128),
    )
    if part.heads * part.head_size != expand * width:
        raise f.wrong("num_heads", f"expand * hidden_size / head_dim ({expand * width / part.head_size:g})")
    return DecoderConfig(
        architecture="mamba2",
        vocabulary=f.integer("vocab_size"),
        context_tokens=CONTEXT_TOKENS,
        width=width,
        layers=(Layer(mixer=part, feed_forward=None),) * f.integer("num_hidden_layers", maximum=MAX_LAYERS),
        ropes={},
        norm_epsilon=f.number("layer_norm_epsilon", 1e-5),
        tied_head=f.flag("tie_word_embeddings", False),
    )


def _nemotron_h(f: Fields) -> DecoderConfig:
    # transformers raises time steps to time_step_min, but for prompts only; the models were trained without that.
    attention = Attention(
        heads=(heads := f.integer("num_attention_heads")),
        kv_heads=f.integer("num_key_value_heads", heads),
        head_size=(size := f.integer("head_dim")),
        scale=size**-0.5,
        rope="",
        turned=0,
        biased=from_hf.attention_biases(f),
    )
    if heads % attention.kv_heads:
        raise f.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    f.refuse("sliding_window", (), "attention in a window is not supported for this architecture")
    f.one_of("mamba_hidden_act", {"silu": None}, "silu")
    layers: dict[str, Callable[[], Layer]] = {
        "linear_attention": lambda: Layer(
            mixer=mamba2(
                f,
                heads=f.integer("mamba_num_heads"),
                head_size=f.integer("mamba_head_dim"),
                state_size=f.integer("ssm_state_size"),
            ),
            feed_forward=None,
        ),
        "full_attention": lambda: Layer(mixer=attention, feed_forward=None),
        "mlp": lambda: Layer(mixer=None, feed_forward=_relu2_mlp(f, f.integer("intermediate_size"))),
        "moe": lambda: Layer(mixer=None, feed_forward=_experts(f)),
    }
    kinds = _kinds(f, list(layers))
    made = {kind: layers[kind]() for kind in set(kinds)}
    return DecoderConfig(
        architecture="nemotron_h",
        vocabulary=f.integer("vocab_size"),
        context_tokens=f.integer("max_position_embeddings"),
        width=f.integer("hidden_size"),
        layers=tuple(made[kind] for kind in kinds),
        ropes={},
        norm_epsilon=f.number("layer_norm_epsilon", 1e-5),
        tied_head=f.flag("tie_word_embeddings", False),
    )


def _relu2_mlp(f: Fields, width: int) -> Mlp:
    return Mlp(
        width=width,
        activation=f.one_of("mlp_hidden_act", from_hf.ACTIVATIONS, "relu2"),
        gated=False,
        biased=frozenset({"up", "down"}) if f.flag("mlp_bias", False) else frozenset(),
    )


def _experts(f: Fields) -> Mixture:
    f.refuse("moe_latent_size", (), "experts of a narrower stream are not supported")
    groups, kept = f.integer("n_group", 1), f.integer("topk_group", 1)
    return mixtures.mixture(
        f,
        experts=f.integer("n_routed_experts", maximum=MOST_EXPERTS),
        activation=f.one_of("mlp_hidden_act", from_hf.ACTIVATIONS, "relu2"),
        normalise=f.flag("norm_topk_prob", True),
        score="sigmoid",
        scale=f.number("routed_scaling_factor", 1.0),
        corrected=True,
        groups=groups,
        kept_groups=kept,
        group_best=1 if groups == 1 else 2,
        gated=False,
        shared=_relu2_mlp(f, f.integer("moe_shared_expert_intermediate_size")),
    )


def _kinds(f: Fields, known: list[str]) -> list[str]:
    """From layers_block_type (older files: ["mamba", "attention", ...]), or from a pattern of letters, "M-M*"."""
    key = "layers_block_type" if f.has("layers_block_type") else "hybrid_override_pattern"
    names = {
        "mamba": "linear_attention", "attention": "full_attention",
        "M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe",
    }  # fmt: skip
    value = f.table.get(key)
    kinds = [names.get(str(each), str(each)) for each in value] if isinstance(value, list | str) else []
    if not 0 < len(kinds) <= MAX_LAYERS or not set(kinds) <= set(known) or set(kinds) <= {"mlp", "moe"}:
        raise f.wrong(key, f"a layer of these kinds for each: {', '.join(known)}")
    return kinds


def _nemotron_h_gguf(file: GgufFile) -> DecoderConfig:
    """Layers that have K and V are attention; of the others, those of no width are Mamba-2's."""
    f = from_gguf.fields(file)
    f.refuse("moe_latent_size", (0,), "experts of a narrower stream are not supported")
    count = from_gguf.layer_count(f)
    kv_heads = from_gguf.of_layers(f, file, "attention.head_count_kv", count)
    widths = from_gguf.of_layers(f, file, "feed_forward_length", count)
    unturned = Rope(size=0, base=1.0)
    mixers: list[Mixer | None] = []
    networks: list[FeedForward | None] = []
    for kv, width in zip(kv_heads, widths, strict=True):
        attention = replace(from_gguf.attention(f, file, unturned, kv_heads=kv), rope="") if kv else None
        mixers.append(attention if kv else None if width else mamba2_gguf(f, file))
        networks.append(_network_gguf(f, file, width) if width and not kv else None)
    return from_gguf.decoder(f, file, mixers, networks, {}, norm_epsilon=norm_epsilon_gguf(f))


def _network_gguf(f: Fields, file: GgufFile, width: int) -> FeedForward:
    if not f.count("expert_count"):
        biased = from_gguf.biased(file, {m: from_gguf.MLP_MAPS[m] for m in ("up", "down")})
        return Mlp(width=width, activation="relu2", gated=False, biased=biased)
    shared = Mlp(width=f.integer("expert_shared_feed_forward_length"), activation="relu2", gated=False)
    return mixtures.mixture_gguf(
        f, file, default_score="sigmoid", activation="relu2", gated=False, shared=shared, width=f.integer(_WIDTH, width)
    )


_WIDTH = "expert_feed_forward_length"
_IN_LAYER = "backbone.layers.{}."
_MIXER = _IN_LAYER + "mixer."
_EXPERT_MAPS = {m: f"{m}_proj" for m in ("up", "down")}
_MAPS = {"in": "in_proj", "out": "out_proj", "conv": "conv1d", "up": "up_proj", "down": "down_proj"}
NAMES = FileNames(
    {
        "embed": "backbone.embeddings.weight",
        "norm": "backbone.norm_f.weight",
        "head": "lm_head.weight",
        **weights_and_biases({ours: _MIXER + theirs for ours, theirs in _MAPS.items()}),
        **weights_and_biases({m: f"{_MIXER}{m}_proj" for m in "qkvo"}),
        **mixtures.names(_MIXER + "experts", _EXPERT_MAPS),
        **weights_and_biases({f"shared.{m}": f"{_MIXER}shared_experts.{m}_proj" for m in _EXPERT_MAPS}),
        LAYER + "router": _MIXER + "gate.weight",
        LAYER + "router_correction": _MIXER + "gate.e_score_correction_bias",
        LAYER + "attention_norm": _IN_LAYER + "norm.weight",
        LAYER + "mlp_norm": _IN_LAYER + "norm.weight",
        LAYER + "decay": _MIXER + "A_log",
        LAYER + "step_bias": _MIXER + "dt_bias",
        LAYER + "skip": _MIXER + "D",
        LAYER + "scan_weight": _MIXER + "norm.weight",
    },
    unused=("lm_head.weight", "mtp.*"),
    stacks=tuple(
        Stack(f"{_MIXER}experts.{theirs}", (f"{_MIXER}experts.{{}}.{theirs}.weight",))
        for theirs in _EXPERT_MAPS.values()
    ),
    forms={LAYER + "decay": NEGATIVE_LOGARITHMS},
    kernels=frozenset({_MIXER + "conv1d.weight"}),
)
_GGUF_MAPS = {"in": "ssm_in", "out": "ssm_out", "conv": "ssm_conv1d"}
_GGUF_VECTORS = {"decay": "ssm_a", "step_bias": "ssm_dt.bias", "skip": "ssm_d", "scan_weight": "ssm_norm.weight"}
GGUF_NAMES = weights_and_biases({ours: f"blk.{{}}.{theirs}" for ours, theirs in _GGUF_MAPS.items()}) | {
    LAYER + ours: f"blk.{{}}.{theirs}" for ours, theirs in _GGUF_VECTORS.items()
}
GGUF_RESHAPED = frozenset(f"blk.{{}}.{theirs}" for theirs in _GGUF_VECTORS.values())
_MAMBA2_GGUF = replace(from_gguf.NAMES, names=from_gguf.NAMES.names | GGUF_NAMES, reshaped=GGUF_RESHAPED)
_NEMOTRON_H_GGUF = replace(
    _MAMBA2_GGUF,
    names=_MAMBA2_GGUF.names | mixtures.GGUF_NAMES | {LAYER + "mlp_norm": "blk.{}.attn_norm.weight"},
    stacks=mixtures.GGUF_STACKS,
    further_layers="blk.{}.",
)

MAMBA2 = HfArchitecture(_mamba2, NAMES)
NEMOTRON_H = HfArchitecture(_nemotron_h, NAMES)
MAMBA2_GGUF = GgufArchitecture(_mamba2_gguf, _MAMBA2_GGUF)
NEMOTRON_H_GGUF = GgufArchitecture(_nemotron_h_gguf, _NEMOTRON_H_GGUF)
