"""Qwen 2 MoE (arXiv 2407.10671): Qwen 2 with experts beside a network that every token passes, weighed by a sigmoid.
Qwen 3 MoE (arXiv 2505.09388): Qwen 3 with experts only."""

from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, mixtures, qwen
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward


def _qwen2(f: Fields) -> DecoderConfig:
    biased = frozenset("qkv") if f.flag("qkv_bias", True) else frozenset[str]()
    shared = from_hf.mlp(f, width=f.integer("shared_expert_intermediate_size"))
    part = mixtures.mixture(f, normalise=f.flag("norm_topk_prob", False), shared=shared, shared_gated=True)
    rope = from_hf.only_rope(f)
    mixers = [from_hf.attention(f, rope, biased=biased, window=window) for window in qwen.windows(f)]
    return from_hf.decoder(f, "qwen2_moe", mixers, layers(f, part), {"global": rope})


def _qwen3(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f), qk_norm_epsilon=from_hf.norm_epsilon(f))
    slides = f.flag("use_sliding_window", False)
    windows = from_hf.windows(f, from_hf.sliding(f, lambda _: slides))
    mixers = [replace(attention, window=window) for window in windows]
    experts = f.integer("num_experts" if f.has("num_experts") else "num_local_experts", maximum=MOST_EXPERTS)
    part = mixtures.mixture(f, experts=experts, normalise=f.flag("norm_topk_prob", False))
    return from_hf.decoder(f, "qwen3_moe", mixers, layers(f, part), {"global": rope})


def layers(f: Fields, part: FeedForward) -> list[FeedForward]:
    """Every decoder_sparse_step-th layer has experts, but for those that mlp_only_layers names."""
    step, plain = f.integer("decoder_sparse_step", 1), f.table.get("mlp_only_layers") or []
    if not isinstance(plain, list):
        raise f.wrong("mlp_only_layers", "a list of layers")
    return [part if (n + 1) % step == 0 and n not in plain else from_hf.mlp(f) for n in range(from_hf.layer_count(f))]


def _qwen2_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    shared = Mlp(width=f.integer("expert_shared_feed_forward_length"), activation="silu")
    part = mixtures.mixture_gguf(f, file, shared=shared, shared_gated=True)
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, part, {"global": rope})


def _qwen3_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = replace(from_gguf.attention(f, file, rope), qk_norm_epsilon=from_gguf.norm_epsilon(f))
    mixers = [attention] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, mixtures.mixture_gguf(f, file, normalise=True), {"global": rope})


_IN_LAYER = "model.layers.{}.mlp."
_SHARED = {f"{LAYER}shared.{m}": f"{_IN_LAYER}shared_expert.{m}_proj.weight" for m in ("gate", "up", "down")}
_NAMES = {
    **from_hf.NAMES.names,
    **mixtures.names(f"{_IN_LAYER}experts", mixtures.HF_MAPS),
    **_SHARED,
    f"{LAYER}router": f"{_IN_LAYER}gate.weight",
    f"{LAYER}shared_gate": f"{_IN_LAYER}shared_expert_gate.weight",
}
FILES = replace(from_hf.NAMES, names=_NAMES, stacks=mixtures.stacks(f"{_IN_LAYER}experts", mixtures.HF_MAPS))

GGUF_FILES = replace(
    from_gguf.NAMES,
    names=from_gguf.NAMES.names | mixtures.GGUF_NAMES,
    stacks=mixtures.GGUF_STACKS,
    reshaped=mixtures.GGUF_RESHAPED,
)

QWEN2_MOE = HfArchitecture(_qwen2, FILES)
QWEN3_MOE = HfArchitecture(_qwen3, FILES)
QWEN2_MOE_GGUF = GgufArchitecture(_qwen2_gguf, GGUF_FILES)
QWEN3_MOE_GGUF = GgufArchitecture(_qwen3_gguf, GGUF_FILES)
