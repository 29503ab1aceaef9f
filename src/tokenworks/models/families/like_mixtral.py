"""Decoders with experts that differ from others in a few numbers.

MiniMax M2            partly turned heads, q and k normed over all heads together; DeepSeek-V3's router without groups
dots.llm1             q and k normed in each head; DeepSeek-V3's router (arXiv 2506.05767)
ERNIE 4.5             rotary pairs (2i, 2i + 1); a softmax whose choice is corrected
Hunyuan A13B          q and k normed when they are turned; a network that all tokens pass
"""

from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, glm_moe, like_llama, mixtral, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward


def _minimax(f: Fields) -> DecoderConfig:
    size = from_hf.head_size(f, 128)
    share = f.integer("rotary_dim", size, maximum=size) / size
    rope = from_hf.only_rope(f, size, base=5e6, share=share)
    attention = from_hf.attention(
        f,
        rope,
        head_size=size,
        scale=size**-0.5,
        qk_norm_epsilon=from_hf.norm_epsilon(f),
        qk_norm_whole=True,
    )
    experts = mixtures.mixture(
        f,
        experts=f.integer("num_local_experts", maximum=MOST_EXPERTS),
        width=f.integer("intermediate_size"),
        normalise=True,
        score="sigmoid",
        corrected=True,
    )
    return from_hf.decoder(f, "minimax_m2", [attention] * from_hf.layer_count(f), experts, {"global": rope})


def _dots(f: Fields) -> DecoderConfig:
    rope, windowless = from_hf.only_rope(f), f.count("max_window_layers", 62)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f), qk_norm_epsilon=from_hf.norm_epsilon(f))
    slides = from_hf.sliding(f, lambda number: f.has("sliding_window") and number >= windowless)
    mixers = [replace(attention, window=window) for window in from_hf.windows(f, slides, 4096)]
    width, dense = f.integer("moe_intermediate_size"), f.count("first_k_dense_replace")
    experts = mixtures.mixture(
        f,
        experts=f.integer("n_routed_experts", maximum=MOST_EXPERTS),
        normalise=f.flag("norm_topk_prob", False),
        score="sigmoid",
        scale=f.number("routed_scaling_factor", 1.0),
        corrected=True,
        groups=f.integer("n_group", 1),
        kept_groups=f.integer("topk_group", 1),
        group_best=2,
        shared=from_hf.mlp(f, width=width * f.integer("n_shared_experts", 1)),
    )
    networks: list[FeedForward] = [from_hf.mlp(f) if number < dense else experts for number in range(len(mixers))]
    return from_hf.decoder(f, "dots1", mixers, networks, {"global": rope})


def _ernie(f: Fields) -> DecoderConfig:
    f.refuse("use_bias", (False,), "biases are not supported for this architecture")
    plain = like_llama.ernie(f, from_hf.head_size(f))
    shared = f.count("moe_num_shared_experts", 2)
    width = f.integer("moe_intermediate_size", 1536)
    experts = mixtures.mixture(
        f,
        experts=f.integer("moe_num_experts", 64, maximum=MOST_EXPERTS),
        top_k=f.integer("moe_k", 6),
        width=width,
        normalise=True,
        corrected=True,
        shared=from_hf.mlp(f, width=width * shared) if shared else None,
    )
    count = len(plain.layers)
    first, interval = f.count("moe_layer_start_index", 1), f.integer("moe_layer_interval", 1)
    end = f.table.get("moe_layer_end_index", -1)
    last = count - 1 if end == -1 else f.count("moe_layer_end_index")
    layers = [
        replace(layer, feed_forward=experts) if first <= n <= last and (n + 1) % interval == 0 else layer
        for n, layer in enumerate(plain.layers)
    ]
    return replace(plain, architecture="ernie4_5_moe", layers=tuple(layers))


def _hunyuan(f: Fields) -> DecoderConfig:
    plain = like_llama.HUNYUAN.read(f)
    assert isinstance(plain, DecoderConfig)
    shared = plain.layers[0].feed_forward
    assert isinstance(shared, Mlp)
    experts = mixtures.mixture(
        f,
        experts=f.integer("num_experts", maximum=MOST_EXPERTS),
        top_k=_of_all(f, "moe_topk"),
        width=shared.width,
        normalise=True,
        shared=shared,
    )
    layers = tuple(replace(layer, feed_forward=experts) for layer in plain.layers)
    return replace(plain, architecture="hunyuan_v1_moe", layers=layers)


def _minimax_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = replace(
        from_gguf.attention(f, file, rope), qk_norm_epsilon=from_gguf.norm_epsilon(f), qk_norm_whole=True
    )
    experts = mixtures.mixture_gguf(f, file, score="sigmoid", normalise=True, corrected=True)
    return from_gguf.decoder(f, file, [attention] * from_gguf.layer_count(f), experts, {"global": rope})


def _ernie_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    count, rope = from_gguf.layer_count(f), from_gguf.rope(f, file)
    shared = next((t.shape[0] for name, t in file.tensors.items() if name.endswith(".ffn_up_shexp.weight")), 0)
    experts = mixtures.mixture_gguf(
        f, file, normalise=True, corrected=True, shared=Mlp(width=shared, activation="silu") if shared else None
    )
    dense, step = f.count("leading_dense_block_count"), f.integer("interleave_moe_layer_step", 1)
    plain = Mlp(width=f.integer("feed_forward_length"), activation="silu")
    networks: list[FeedForward] = [
        experts if number >= dense and (number + 1) % step == 0 else plain for number in range(count)
    ]
    return from_gguf.decoder(f, file, [from_gguf.attention(f, file, rope)] * count, networks, {"global": rope})


def _of_all(f: Fields, key: str) -> int:
    """A number that a file may give for each layer; the same for all."""
    value = f.table.get(key)
    if isinstance(value, list) and value and all(each == value[0] for each in value):
        return Fields(f.path, {key: value[0]}).integer(key)
    return f.integer(key, 1)


_IN_LAYER = "model.layers.{}.mlp."
_EXPERTS = _IN_LAYER + "experts"
_EACH = {
    **mixtures.names(_EXPERTS, mixtures.HF_MAPS),
    **{f"{LAYER}shared.{m}": f"{_IN_LAYER}shared_experts.{m}_proj.weight" for m in mixtures.HF_MAPS},
    f"{LAYER}router": _IN_LAYER + "gate.weight",
    f"{LAYER}router_correction": _IN_LAYER + "moe_statics.e_score_correction_bias",
}
_STACKS = mixtures.stacks(_EXPERTS, mixtures.HF_MAPS)
_CORRECTION = "model.layers.{}.block_sparse_moe.e_score_correction_bias"

MINIMAX_M2 = HfArchitecture(
    _minimax,
    replace(
        mixtral.MIXTRAL.files,
        names=mixtral.MIXTRAL.files.names | {f"{LAYER}router_correction": _CORRECTION},
        further_layers="model.layers.{}.",
    ),
)
DOTS1 = HfArchitecture(_dots, glm_moe.GLM4_MOE.files)
ERNIE4_5_MOE = HfArchitecture(
    _ernie,
    replace(
        like_llama.ERNIE4_5.files,
        names=like_llama.ERNIE4_5.files.names | _EACH,
        stacks=_STACKS,
        respelt=((".gate.moe_statics.", ".moe_statics."),),
        reshaped=frozenset({_EACH[f"{LAYER}router_correction"]}),
    ),
)
_HUNYUAN = {
    f"{LAYER}router": _IN_LAYER + "gate.wg.weight",
    **{f"{LAYER}shared.{m}": f"{_IN_LAYER}shared_mlp.{m}_proj.weight" for m in mixtures.HF_MAPS},
}
HUNYUAN_MOE = HfArchitecture(
    _hunyuan, replace(like_llama.HUNYUAN.files, names=like_llama.HUNYUAN.files.names | _EACH | _HUNYUAN, stacks=_STACKS)
)
_GGUF = replace(
    from_gguf.NAMES,
    names=from_gguf.NAMES.names | mixtures.GGUF_NAMES,
    stacks=mixtures.GGUF_STACKS,
    reshaped=frozenset({mixtures.GGUF_NAMES[f"{LAYER}router_correction"]}),
)
MINIMAX_M2_GGUF = GgufArchitecture(_minimax_gguf, _GGUF)
ERNIE4_5_MOE_GGUF = GgufArchitecture(_ernie_gguf, replace(_GGUF, interleaved_rotary=True))
