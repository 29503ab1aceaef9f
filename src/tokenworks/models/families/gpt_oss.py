"""gpt-oss (arXiv 2508.10925): experts in MXFP4 with clamped gates, attention with learned sinks, every other layer with
a window, YaRN."""

from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.files.stacked import Stack
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.rope import Yarn

_ALL = frozenset({"router", "gate", "up", "down"})
_LIMIT, _ALPHA = 7.0, 1.702
"""Gates are at most _LIMIT, what they multiply is between -_LIMIT and it; x sigmoid(_ALPHA x) is gelu_quick."""
_ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
"""Where the file says none; with it the library's class has all of it."""


def _read(f: Fields) -> DecoderConfig:
    f.refuse("swiglu_alpha", (_ALPHA,), f"only {_ALPHA} is supported")
    if not (f.has("rope_parameters") or f.has("rope_scaling")):
        f = replace(f, table={**f.table, "rope_parameters": _ROPE})
    rope = from_hf.only_rope(f, base=150000.0)
    biased = frozenset("qkvo") if f.flag("attention_bias", True) else frozenset[str]()
    attention = from_hf.attention(f, rope, biased=biased, sinks=True)
    windows = from_hf.windows(f, from_hf.sliding(f, lambda number: number % 2 == 0), 128)
    part = mixtures.mixture(
        f,
        experts=f.integer("num_local_experts", maximum=MOST_EXPERTS),
        width=f.integer("intermediate_size"),
        activation="gelu_quick",
        normalise=True,
        limit=f.number("swiglu_limit", _LIMIT),
        offset=1.0,
        biased=_ALL,
    )
    mixers = [replace(attention, window=window) for window in windows]
    epsilon = from_hf.norm_epsilon(f, 1e-5)
    return from_hf.decoder(f, "gpt_oss", mixers, part, {"global": rope}, norm_epsilon=epsilon)


def _read_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    if isinstance(rope.stretched, Yarn):
        rope = replace(rope, stretched=replace(rope.stretched, whole=False))  # metadata cannot say so
    attention = replace(from_gguf.attention(f, file, rope), sinks=True)
    window = f.integer("attention.sliding_window")
    part: Mixture = mixtures.mixture_gguf(
        f, file, activation="gelu_quick", normalise=True, limit=_LIMIT, offset=1.0, biased=_ALL
    )
    mixers = [replace(attention, window=0 if n % 2 else window) for n in range(from_gguf.layer_count(f))]
    return from_gguf.decoder(f, file, mixers, part, {"global": rope})


_EXPERTS = "model.layers.{}.mlp.experts"
_EACH = {m: f"{_EXPERTS}.{{}}.{m}_proj" for m in ("gate", "up", "down")}
"""What they are called where each is quantised by itself; else they are stacked, gate's and up's rows in turn."""
_NAMES = {
    **from_hf.NAMES.names,
    f"{LAYER}sinks": "model.layers.{}.self_attn.sinks",
    f"{LAYER}router": "model.layers.{}.mlp.router.weight",
    f"{LAYER}router.bias": "model.layers.{}.mlp.router.bias",
    **{f"{LAYER}experts.{{}}.{m}": f"{name}.weight" for m, name in _EACH.items()},
    **{f"{LAYER}experts.{{}}.{m}.bias": f"{name}.bias" for m, name in _EACH.items()},
}
_STACKS = (
    Stack(
        f"{_EXPERTS}.gate_up_proj",
        (f"{_EACH['gate']}.weight", f"{_EACH['up']}.weight"),
        alternate=True,
        transposed=True,
    ),
    Stack(f"{_EXPERTS}.gate_up_proj_bias", (f"{_EACH['gate']}.bias", f"{_EACH['up']}.bias"), alternate=True),
    Stack(f"{_EXPERTS}.down_proj", (f"{_EACH['down']}.weight",), transposed=True),
    Stack(f"{_EXPERTS}.down_proj_bias", (f"{_EACH['down']}.bias",)),
)

_GGUF_NAMES = {
    **from_gguf.NAMES.names,
    **mixtures.GGUF_NAMES,
    f"{LAYER}sinks": "blk.{}.attn_sinks.weight",
    f"{LAYER}mlp_norm": "blk.{}.post_attention_norm.weight",
    f"{LAYER}router.bias": "blk.{}.ffn_gate_inp.bias",
    **{f"{LAYER}experts.{{}}.{m}.bias": f"blk.{{}}.ffn_{m}.{{}}.bias" for m in ("gate", "up", "down")},
}
_GGUF_BIASES = tuple(
    Stack(f"blk.{{}}.ffn_{m}_exps.bias", (f"blk.{{}}.ffn_{m}.{{}}.bias",)) for m in ("gate", "up", "down")
)

GPT_OSS = HfArchitecture(_read, replace(from_hf.NAMES, names=_NAMES, stacks=_STACKS))
GPT_OSS_GGUF = GgufArchitecture(
    _read_gguf, replace(from_gguf.NAMES, names=_GGUF_NAMES, stacks=(*mixtures.GGUF_STACKS, *_GGUF_BIASES))
)
