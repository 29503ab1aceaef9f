"""GLM 4.5 and 4.6 (arXiv 2508.06471): partly turned heads, first layers without experts, then DeepSeek-V3's sigmoid
router with corrected choice (arXiv 2412.19437) beside a network that every token passes.

A layer behind the last one guesses a further token.
"""

from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.families import from_gguf, from_hf, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.multi_token import multi_token_names


def _read(f: Fields) -> DecoderConfig:
    section = f.section("rope_parameters") or f.section("rope_scaling")
    size = from_hf.head_size(f)
    rope = from_hf.rope(f, section, size, f.number("rope_theta", 1e4))
    if rope.size == size and not any(part.has("partial_rotary_factor") for part in (f, section) if part is not None):
        rope = replace(rope, size=size // 2)
    epsilon = from_hf.norm_epsilon(f, 1e-5)
    attention = from_hf.attention(
        f,
        rope,
        biased=frozenset("qkv") if f.flag("attention_bias", False) else frozenset(),
        qk_norm_epsilon=epsilon if f.flag("use_qk_norm", False) else 0.0,
    )
    width, dense = f.integer("moe_intermediate_size"), f.count("first_k_dense_replace", 1)
    part = mixtures.mixture(
        f,
        experts=f.integer("n_routed_experts", maximum=MOST_EXPERTS),
        normalise=f.flag("norm_topk_prob", True),
        score="sigmoid",
        scale=f.number("routed_scaling_factor", 1.0),
        corrected=True,
        groups=f.integer("n_group", 1),
        kept_groups=f.integer("topk_group", 1),
        group_best=2,
        shared=from_hf.mlp(f, width=width * f.integer("n_shared_experts", 1)),
    )
    count = from_hf.layer_count(f)
    layers = [from_hf.mlp(f) if number < dense else part for number in range(count)]
    guesser = from_hf.multi_token(f, attention, part)
    return from_hf.decoder(
        f,
        "glm4_moe",
        [attention] * count,
        layers,
        {"global": rope},
        norm_epsilon=epsilon,
        multi_token=guesser,
    )


def _read_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = from_gguf.attention(f, file, rope)
    if "blk.0.attn_q_norm.weight" in file.tensors:
        attention = replace(attention, qk_norm_epsilon=from_gguf.norm_epsilon(f))
    width, dense = f.integer("expert_feed_forward_length"), f.count("leading_dense_block_count")
    part = mixtures.mixture_gguf(
        f,
        file,
        default_score="sigmoid",
        normalise=f.flag("expert_weights_norm", True),
        shared=Mlp(width=width * f.integer("expert_shared_count", 1), activation="silu"),
    )
    count = from_gguf.layer_count(f)
    plain = Mlp(width=f.integer("feed_forward_length"), activation="silu")
    layers = [plain if number < dense else part for number in range(count)]
    guesser = Layer(mixer=attention, feed_forward=part) if f.count("nextn_predict_layers") else None
    return from_gguf.decoder(f, file, [attention] * count, layers, {"global": rope}, multi_token=guesser)


_IN_LAYER = "model.layers.{}.mlp."
_PARTS = ("gate", "up", "down")
_NAMES = {
    **from_hf.NAMES.names,
    **mixtures.names(f"{_IN_LAYER}experts", mixtures.HF_MAPS),
    **{f"{LAYER}shared.{m}": f"{_IN_LAYER}shared_experts.{m}_proj.weight" for m in _PARTS},
    f"{LAYER}router": f"{_IN_LAYER}gate.weight",
    f"{LAYER}router_correction": f"{_IN_LAYER}gate.e_score_correction_bias",
    **multi_token_names("model.layers.{}."),
}
_GGUF_NAMES = {
    **from_gguf.NAMES.names,
    **mixtures.GGUF_NAMES,
    f"{LAYER}mlp_norm": "blk.{}.post_attention_norm.weight",
    **multi_token_names("blk.{}.nextn.", head_norm="shared_head_norm"),
}

GLM4_MOE = HfArchitecture(
    _read,
    replace(
        from_hf.NAMES,
        names=_NAMES,
        further_layers="model.layers.{}.",
        stacks=mixtures.stacks(f"{_IN_LAYER}experts", mixtures.HF_MAPS),
    ),
)
GLM4_MOE_GGUF = GgufArchitecture(
    _read_gguf,
    replace(from_gguf.NAMES, names=_GGUF_NAMES, further_layers="blk.{}.", stacks=mixtures.GGUF_STACKS),
)
