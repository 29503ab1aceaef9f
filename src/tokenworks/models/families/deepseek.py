"""DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 and R1 (arXiv 2412.19437), and those that differ from these in numbers:
Kimi K2, Moonlight, GLM-4.7-Flash.

Latent attention in every layer; experts, with a network that every token passes, in all but the first layers. Some have
a layer behind the last one that guesses a further token.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture, weights_and_biases
from tokenworks.models.files.stacked import Stack
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.latent import Latent
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.multi_token import multi_token_names
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.rope import Rope, Yarn, yarn_scale
from tokenworks.protocol.errors import ModelError


def _v2(f: Fields) -> DecoderConfig:
    f.refuse("norm_topk_prob", (False,), "DeepSeek-V2's experts are weighed by their plain scores")
    f.refuse("scoring_func", ("softmax",), "DeepSeek-V2's scores are a softmax")
    grouped = f.one_of("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    groups = {"groups": f.integer("n_group"), "kept_groups": f.integer("topk_group")} if grouped else {}
    return _decoder(f, "deepseek_v2", _mixture(f, normalise=False, **groups), dense=f.count("first_k_dense_replace", 0))


def _v3(f: Fields) -> DecoderConfig:
    return _decoder(f, "deepseek_v3", _noaux(f), dense=f.count("first_k_dense_replace", 3))


def _glm4_lite(f: Fields) -> DecoderConfig:
    kinds = f.table.get("mlp_layer_types")
    if kinds is None:
        return _decoder(f, "glm4_moe_lite", _noaux(f), dense=f.count("first_k_dense_replace", 1))
    count = from_hf.layer_count(f)
    dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * dense + ["sparse"] * (count - dense):
        raise f.wrong("mlp_layer_types", f"{count} of dense and sparse, dense ones first")
    return _decoder(f, "glm4_moe_lite", _noaux(f), dense=dense)


def _noaux(f: Fields) -> Mixture:
    """DeepSeek-V3's: balanced by a correction of each expert's score in place of a loss (arXiv 2408.15664)."""
    f.refuse("topk_method", ("noaux_tc",), "only the choice by corrected scores is supported")
    f.refuse("scoring_func", ("sigmoid",), "only sigmoid scores are supported here")
    return _mixture(
        f,
        normalise=f.flag("norm_topk_prob", True),
        score="sigmoid",
        corrected=True,
        groups=f.integer("n_group", 1),
        kept_groups=f.integer("topk_group", 1),
        group_best=2,
    )


def _mixture(f: Fields, **differences: object) -> Mixture:
    shared, width = f.count("n_shared_experts", 0), f.integer("moe_intermediate_size")
    activation = f.one_of("hidden_act", from_hf.ACTIVATIONS, "silu")
    return mixtures.mixture(
        f,
        experts=f.integer("n_routed_experts", maximum=MOST_EXPERTS),
        width=width,
        scale=f.number("routed_scaling_factor", 1.0),
        shared=Mlp(width=shared * width, activation=activation) if shared else None,
        **differences,
    )


def _decoder(f: Fields, architecture: str, experts: Mixture, dense: int) -> DecoderConfig:
    f.refuse("moe_layer_freq", (1,), "only experts in every layer behind the dense ones are supported")
    count, size = from_hf.layer_count(f), f.integer("qk_rope_head_dim")
    if size % 2:
        raise f.wrong("qk_rope_head_dim", "an even number")
    rope = from_hf.only_rope(f, size)
    feed_forwards = [from_hf.mlp(f) if number < dense else experts for number in range(count)]
    latent = _latent(f, rope)
    guesser = from_hf.multi_token(f, latent, experts)
    return from_hf.decoder(f, architecture, [latent] * count, feed_forwards, {"global": rope}, multi_token=guesser)


def _latent(f: Fields, rope: Rope) -> Latent:
    unturned = f.integer("qk_nope_head_dim")
    scale = (unturned + rope.size) ** -0.5
    section = f.section("rope_parameters") or f.section("rope_scaling")
    weight = section.number("mscale_all_dim", 0, zero=True) if section is not None else 0.0
    if section is not None and weight and rope.stretched is not None:
        scale *= yarn_scale(section.number("factor"), weight) ** 2
    return Latent(
        heads=f.integer("num_attention_heads"),
        rank=f.integer("kv_lora_rank"),
        turned=rope.size,
        unturned=unturned,
        value_size=f.integer("v_head_dim"),
        scale=scale,
        rope="global",
        turned_scale=rope.scale,
        query_rank=f.integer("q_lora_rank") if f.has("q_lora_rank") else 0,
        biased=frozenset({"q_a", "kv_a", "o"}) if f.flag("attention_bias", False) else frozenset(),
        interleaved=f.flag("rope_interleave", True),
    )


def _read_gguf(file: GgufFile) -> DecoderConfig:
    """Of all: DeepSeek-V2's scores are a softmax."""
    f = from_gguf.fields(file)
    if not f.has("attention.key_length_mla"):
        raise ModelError(f"{file.path}: its heads' projections lie as they did before 2025; convert the model anew.")
    rope, count, dense = from_gguf.rope(f, file), from_gguf.layer_count(f), f.count("leading_dense_block_count")
    shared, width = f.count("expert_shared_count"), f.integer("expert_feed_forward_length")
    plain = Mlp(width=f.integer("feed_forward_length"), activation="silu")
    experts: FeedForward = plain
    if dense < count:
        corrected = any(name.endswith(".exp_probs_b.bias") for name in file.tensors)
        experts = mixtures.mixture_gguf(
            f,
            file,
            default_score="sigmoid" if corrected else "softmax",
            shared=Mlp(width=shared * width, activation="silu") if shared else None,
        )
    scale = f.integer("attention.key_length_mla") ** -0.5
    if isinstance(rope.stretched, Yarn) and f.has(_LOG):
        # llama.cpp stores a tenth of mscale_all_dim. mscale, which it does not, is the same in all published models.
        scale *= yarn_scale(rope.stretched.factor, 10 * f.number(_LOG)) ** 2
        rope = replace(rope, scale=1.0)
    unturned = f.integer("attention.key_length_mla") - rope.size
    if unturned < 1:
        raise f.wrong("attention.key_length_mla", f"more than rope.dimension_count ({rope.size})")
    latent = Latent(
        heads=f.integer("attention.head_count"),
        rank=f.integer("attention.kv_lora_rank"),
        turned=rope.size,
        unturned=unturned,
        value_size=f.integer("attention.value_length_mla"),
        scale=scale,
        rope="global",
        turned_scale=rope.scale,
        query_rank=f.integer("attention.q_lora_rank") if "blk.0.attn_q_a.weight" in file.tensors else 0,
        biased=from_gguf.biased(file, {m: _GGUF_MAPS[m] for m in ("q_a", "kv_a", "o")}),
    )
    networks = [plain if number < dense else experts for number in range(count)]
    return from_gguf.decoder(f, file, [latent] * count, networks, {"global": rope})


_LOG = "rope.scaling.yarn_log_multiplier"


def _pairs(part: Latent) -> npt.NDArray[np.int64]:
    pairs = np.arange(part.turned)
    return pairs.reshape(-1, 2).T.reshape(-1) if part.interleaved else pairs


def _query_rows(mixer: Mixer | None) -> npt.NDArray[np.int64]:
    """Files have a head's rotary rows last."""
    assert isinstance(mixer, Latent)
    of_one = np.concatenate((mixer.unturned + _pairs(mixer), np.arange(mixer.unturned)))
    return np.asarray(np.arange(mixer.heads)[:, None] * len(of_one) + of_one).reshape(-1)


def _key_rows(mixer: Mixer | None) -> npt.NDArray[np.int64]:
    assert isinstance(mixer, Latent)
    return np.concatenate((mixer.rank + _pairs(mixer), np.arange(mixer.rank)))


_IN_LAYER = "model.layers.{}."
_MAPS = {"q_a": "q_a_proj", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa"}
_SHARED = {f"{LAYER}shared.{m}": f"{_IN_LAYER}mlp.shared_experts.{m}_proj.weight" for m in ("gate", "up", "down")}
_NAMES = {
    **from_hf.NAMES.names,
    **weights_and_biases({ours: f"{_IN_LAYER}self_attn.{theirs}" for ours, theirs in _MAPS.items()}),
    **{f"{LAYER}{m}_a_norm": f"{_IN_LAYER}self_attn.{m}_a_layernorm.weight" for m in ("q", "kv")},
    **{f"{LAYER}heads.{{}}.{m}": f"{_IN_LAYER}self_attn.kv_b_proj.weight" for m in ("k_up", "v_up")},
    **mixtures.names(f"{_IN_LAYER}mlp.experts", mixtures.HF_MAPS),
    **_SHARED,
    f"{LAYER}router": f"{_IN_LAYER}mlp.gate.weight",
    f"{LAYER}router_correction": f"{_IN_LAYER}mlp.gate.e_score_correction_bias",
    **multi_token_names(_IN_LAYER),
}
_ROWS = {"q": _query_rows, "q_b": _query_rows, "kv_a": _key_rows, "kv_a.bias": _key_rows}
_FILES = replace(
    from_hf.NAMES,
    names=_NAMES,
    further_layers=_IN_LAYER,
    stacks=mixtures.stacks(f"{_IN_LAYER}mlp.experts", mixtures.HF_MAPS),
    rows={LAYER + name: rows for name, rows in _ROWS.items()},
    turned=frozenset({f"{LAYER}heads.{{}}.k_up"}),
)
_GGUF_MAPS = {"q": "attn_q", "q_a": "attn_q_a", "q_b": "attn_q_b", "kv_a": "attn_kv_a_mqa", "o": "attn_output"}
_GGUF_HEADS = {"k_up": "attn_k_b", "v_up": "attn_v_b"}
_GGUF_FILES = replace(
    from_gguf.NAMES,
    names={
        **from_gguf.NAMES.names,
        **mixtures.GGUF_NAMES,
        **weights_and_biases({ours: f"blk.{{}}.{theirs}" for ours, theirs in _GGUF_MAPS.items()}),
        **{f"{LAYER}{m}_a_norm": f"blk.{{}}.attn_{m}_a_norm.weight" for m in ("q", "kv")},
        **{f"{LAYER}heads.{{}}.{ours}": f"blk.{{}}.{theirs}.{{}}.weight" for ours, theirs in _GGUF_HEADS.items()},
    },
    further_layers="blk.{}.",
    stacks=(
        *mixtures.GGUF_STACKS,
        *(Stack(f"blk.{{}}.{name}.weight", (f"blk.{{}}.{name}.{{}}.weight",)) for name in _GGUF_HEADS.values()),
    ),
    rows=_FILES.rows,
)

DEEPSEEK2_GGUF = GgufArchitecture(_read_gguf, _GGUF_FILES)
DEEPSEEK_V2 = HfArchitecture(_v2, _FILES)
DEEPSEEK_V3 = HfArchitecture(_v3, _FILES)
GLM4_MOE_LITE = HfArchitecture(_glm4_lite, _FILES)
