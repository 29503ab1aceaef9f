"""Llama 4, text: layers that see their chunk of 8192 positions and turn q and k, which they norm without weights, and
layers without positions that see everything, whose queries grow with their place; in all or every second layer one
expert of many, whose input the router weighs, beside a network that every token passes."""

from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture
from tokenworks.models.files.stacked import Stack
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward
from tokenworks.models.parts.temperature import Temperature
from tokenworks.models.vision.settings import required


def _read(f: Fields) -> DecoderConfig:
    f.refuse("num_experts_per_tok", (1,), "one expert for each token is expected")
    count, epsilon, size = from_hf.layer_count(f), f.number("rms_norm_eps", 1e-5), from_hf.head_size(f, 128)
    turned = _turned(f, count)
    chunk = f.integer("attention_chunk_size", 8192) if f.has("attention_chunk_size") else 0
    if "attention_chunk_size" not in f.table:
        chunk = 8192
    rope = from_hf.only_rope(f, size, base=5e5)
    tempered = f.flag("attn_temperature_tuning", True)
    attention = from_hf.attention(
        f, rope, head_size=size, scale=size**-0.5, biased=from_hf.attention_biases(f), norm_weights=False
    )
    turning = replace(
        attention,
        qk_norm_epsilon=epsilon if f.flag("use_qk_norm", True) else 0.0,
        norms_turned=f.flag("use_qk_norm", True),
    )
    seeing = replace(attention, rope="", tempered=tempered)
    mixers = [
        replace(turning if turns else seeing, window=chunk if chunked else 0, chunked=bool(chunked and chunk))
        for turns, chunked in zip(turned, _chunked(f, turned), strict=True)
    ]
    return from_hf.decoder(
        f,
        "llama4",
        mixers,
        _networks(f, count),
        {"global": rope} if any(turned) else {},
        norm_epsilon=epsilon,
        temperature=Temperature(floor=f.number("floor_scale", 8192), growth=f.number("attn_scale", 0.1))
        if tempered and not all(turned)
        else None,
    )


def _turned(f: Fields, count: int) -> list[bool]:
    """Of each layer whether it turns q and k."""
    turned, interval = f.table.get("no_rope_layers"), f.integer("no_rope_layer_interval", 4)
    if not turned:
        return [(number + 1) % interval != 0 for number in range(count)]
    if not isinstance(turned, list) or len(turned) < count or not all(each in (0, 1) for each in turned):
        raise f.wrong("no_rope_layers", f"a list of {count} times 0 or 1")
    return [bool(each) for each in turned[:count]]


def _chunked(f: Fields, turned: list[bool]) -> list[bool]:
    kinds = f.table.get("layer_types")
    if kinds is None:
        return turned
    known = {"full_attention": False, "chunked_attention": True}
    if not isinstance(kinds, list) or len(kinds) != len(turned) or not all(kind in known for kind in kinds):
        raise f.wrong("layer_types", f"{len(turned)} of {', '.join(known)}")
    return [known[kind] for kind in kinds]


def _networks(f: Fields, count: int) -> list[FeedForward]:
    step, width = f.integer("interleave_moe_layer_step", 1), f.integer("intermediate_size")
    places = f.table.get("moe_layers")
    if places is None:
        places = list(range(step - 1, count, step))
    if not isinstance(places, list) or not all(isinstance(number, int) for number in places):
        raise f.wrong("moe_layers", "a list of layers")
    dense = from_hf.mlp(f, width=f.integer("intermediate_size_mlp", 16_384))
    experts = mixtures.mixture(
        f,
        experts=f.integer("num_local_experts", maximum=MOST_EXPERTS),
        width=width,
        top_k=1,
        normalise=False,
        score="sigmoid",
        weighs_input=True,
        shared=from_hf.mlp(f),
    )
    return [experts if number in places else dense for number in range(count)]


def _gguf(file: GgufFile) -> DecoderConfig:
    """Chunks and growth are those of the published models; with a window of 0 there are none, and all layers turn."""
    f = from_gguf.fields(file)
    count, epsilon, rope = from_gguf.layer_count(f), from_gguf.norm_epsilon(f), from_gguf.rope(f, file)
    normed = f.count("expert_count") != 128
    attention = replace(from_gguf.attention(f, file, rope), norm_weights=False)
    turning = replace(attention, qk_norm_epsilon=epsilon if normed else 0.0, norms_turned=normed)
    if f.has("attention.sliding_window") and f.count("attention.sliding_window") == 0:
        mixers, temperature = [turning] * count, None
    else:
        chunk, seeing = replace(turning, window=8192, chunked=True), replace(attention, rope="", tempered=True)
        mixers = [chunk if (number + 1) % 4 else seeing for number in range(count)]
        temperature = Temperature(floor=8192, growth=0.1) if seeing in mixers else None
    width, step = f.integer("expert_feed_forward_length"), f.integer("interleave_moe_layer_step")
    dense, shared = (Mlp(width=w, activation="silu") for w in (f.integer("feed_forward_length"), width))
    experts = mixtures.mixture_gguf(
        f, file, top_k=1, normalise=False, score="sigmoid", weighs_input=True, shared=shared
    )
    networks: list[FeedForward] = [dense if (number + 1) % step else experts for number in range(count)]
    return from_gguf.decoder(f, file, mixers, networks, {"global": rope}, temperature=temperature)


def _whole(f: Fields) -> DecoderConfig:
    """Of a checkpoint that sees too."""
    return _read(required(f, "text_config"))


_FORWARD = "model.layers.{}.feed_forward."
_EXPERTS = _FORWARD + "experts"
_EACH = mixtures.names(_EXPERTS, mixtures.HF_MAPS)
_FILES = replace(
    from_hf.NAMES,
    names={
        **from_hf.NAMES.names,
        **_EACH,
        **{f"{LAYER}{m}": f"{_FORWARD}{m}_proj.weight" for m in mixtures.HF_MAPS},
        **{f"{LAYER}shared.{m}": f"{_FORWARD}shared_expert.{m}_proj.weight" for m in mixtures.HF_MAPS},
        f"{LAYER}router": _FORWARD + "router.weight",
    },
    rows=from_hf.PAIRED_ROWS,
    stacks=tuple(
        Stack(f"{_EXPERTS}.{name}", tuple(_EACH[f"{LAYER}experts.{{}}.{m}"] for m in maps), transposed=True)
        for name, maps in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",)))
    ),
)
LLAMA4 = HfArchitecture(_read, _FILES)
LLAMA4_WHOLE = HfArchitecture(
    _whole,
    replace(
        _FILES,
        unused=(*_FILES.unused, "vision_model.*", "multi_modal_projector.*"),
        prefixes=(("language_model.", ""),),
    ),
)
LLAMA4_GGUF = GgufArchitecture(
    _gguf,
    replace(
        from_gguf.NAMES,
        names=from_gguf.NAMES.names | mixtures.GGUF_NAMES,
        stacks=mixtures.GGUF_STACKS,
        interleaved_rotary=True,
    ),
)
