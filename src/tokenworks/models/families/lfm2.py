"""LFM2 (arXiv 2511.23404): gated short convolutions in most layers, attention with normed q and k in the others; the
larger ones have experts, routed as DeepSeek-V3's (arXiv 2412.19437)."""

from collections.abc import Sequence
from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, FileNames, GgufArchitecture, HfArchitecture, weights_and_biases
from tokenworks.models.parts.gated_convolution import GatedConvolution
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.rope import Rope


def _dense(f: Fields) -> DecoderConfig:
    return _decoder(f, "lfm2", Mlp(width=_width(f), activation="silu"))


def _moe(f: Fields) -> DecoderConfig:
    experts = mixtures.mixture(
        f,
        experts=f.integer("num_experts", maximum=MOST_EXPERTS),
        activation="silu",
        normalise=f.flag("norm_topk_prob", True),
        score="sigmoid",
        scale=f.number("routed_scaling_factor", 1.0),
        corrected=f.flag("use_expert_bias", True),
    )
    count, dense = from_hf.layer_count(f), f.count("num_dense_layers", 2)
    plain = Mlp(width=f.integer("intermediate_size"), activation="silu")
    return _decoder(f, "lfm2_moe", [plain if number < dense else experts for number in range(count)])


def _decoder(f: Fields, name: str, networks: FeedForward | Sequence[FeedForward]) -> DecoderConfig:
    epsilon, rope = f.number("norm_eps", 1e-5), from_hf.only_rope(f, base=1e6)
    attention = from_hf.attention(f, rope, qk_norm_epsilon=epsilon)
    biased = frozenset({"in", "conv", "out"}) if f.flag("conv_bias", False) else frozenset[str]()
    convolution = _convolution(f, f.integer("conv_L_cache", 3), "conv_L_cache", biased)
    kinds = _kinds(f)
    mixers: list[Mixer] = [attention if kind == "full_attention" else convolution for kind in kinds]
    return from_hf.decoder(
        f,
        name,
        mixers,
        networks,
        {"global": rope} if "full_attention" in kinds else {},
        norm_epsilon=epsilon,
        tied_head=f.flag("tie_embedding", f.flag("tie_word_embeddings", True)),
    )


def _convolution(f: Fields, kernel: int, key: str, biased: frozenset[str] = frozenset()) -> GatedConvolution:
    if kernel < 2:
        raise f.wrong(key, "2 or more")
    return GatedConvolution(kernel=kernel, biased=biased)


def _kinds(f: Fields) -> list[str]:
    count, kinds, places = from_hf.layer_count(f), f.table.get("layer_types"), f.table.get("full_attn_idxs")
    if kinds is None and isinstance(places, list):
        return ["full_attention" if number in places else "conv" for number in range(count)]
    known = ("full_attention", "conv")
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in known for kind in kinds):
        raise f.wrong("layer_types", f"{count} of {', '.join(known)}")
    return kinds


def _width(f: Fields) -> int:
    """Of the networks: a share of what the file calls it, rounded up."""
    width = f.integer("block_ff_dim" if f.has("block_ff_dim") else "intermediate_size")
    if not f.flag("block_auto_adjust_ff_dim", True):
        return width
    width = 2 * width // 3
    if "block_ffn_dim_multiplier" in f.table and not f.has("block_ffn_dim_multiplier"):
        return width
    multiple = f.integer("block_multiple_of", 256)
    return -(-int(f.number("block_ffn_dim_multiplier", 1.0) * width) // multiple) * multiple


def _gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    count, rope, epsilon = from_gguf.layer_count(f), _rope_gguf(f), from_gguf.norm_epsilon(f)
    convolution = _convolution(f, f.integer("shortconv.l_cache"), "shortconv.l_cache")
    mixers: list[Mixer] = [
        replace(from_gguf.attention(f, file, rope, kv_heads=heads), qk_norm_epsilon=epsilon) if heads else convolution
        for heads in from_gguf.of_layers(f, file, "attention.head_count_kv", count)
    ]
    plain = Mlp(width=f.integer("feed_forward_length"), activation="silu")
    networks: list[FeedForward] = [plain] * count
    if f.count("expert_count"):
        experts = mixtures.mixture_gguf(f, file, normalise=True, corrected=True)
        dense = f.count("leading_dense_block_count")
        networks = [plain if number < dense else experts for number in range(count)]
    attends = any(not isinstance(mixer, GatedConvolution) for mixer in mixers)
    return from_gguf.decoder(f, file, mixers, networks, {"global": rope} if attends else {})


def _rope_gguf(f: Fields) -> Rope:
    return Rope(size=from_gguf.head_size(f), base=f.number("rope.freq_base", 1e6))


_IN_LAYER = "model.layers.{}."
_MAPS = {
    **{m: f"self_attn.{m}_proj" for m in "qkv"},
    "o": "self_attn.out_proj",
    "q_norm": "self_attn.q_layernorm",
    "k_norm": "self_attn.k_layernorm",
    "in": "conv.in_proj",
    "conv": "conv.conv",
    "out": "conv.out_proj",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
    "attention_norm": "operator_norm",
    "mlp_norm": "ffn_norm",
}
_EXPERT_MAPS = {"gate": "w1", "up": "w3", "down": "w2"}
_EXPERTS = _IN_LAYER + "feed_forward.experts"
_FILES = FileNames(
    {
        "embed": "model.embed_tokens.weight",
        "norm": "model.embedding_norm.weight",
        "head": "lm_head.weight",
        **weights_and_biases({ours: _IN_LAYER + theirs for ours, theirs in _MAPS.items()}),
        **mixtures.names(_EXPERTS, _EXPERT_MAPS),
        LAYER + "router": _IN_LAYER + "feed_forward.gate.weight",
        LAYER + "router_correction": _IN_LAYER + "feed_forward.expert_bias",
    },
    unused=("lm_head.weight",),
    stacks=mixtures.stacks(_EXPERTS, _EXPERT_MAPS),
    kernels=frozenset({_IN_LAYER + "conv.conv.weight"}),
)
LFM2 = HfArchitecture(_dense, _FILES)
LFM2_MOE = HfArchitecture(_moe, _FILES)

_IN_GGUF = {"in": "shortconv.in_proj", "conv": "shortconv.conv", "out": "shortconv.out_proj"}
LFM2_GGUF = GgufArchitecture(
    _gguf,
    replace(
        from_gguf.NAMES,
        names={
            **from_gguf.NAMES.names,
            **mixtures.GGUF_NAMES,
            "norm": "token_embd_norm.weight",
            **{LAYER + ours: f"blk.{{}}.{theirs}.weight" for ours, theirs in _IN_GGUF.items()},
            LAYER + "router_correction": "blk.{}.exp_probs_b.bias",
        },
        stacks=mixtures.GGUF_STACKS,
    ),
)
