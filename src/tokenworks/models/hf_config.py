"""Reads the config.json of a safetensors checkpoint into a ModelConfig: a function for each architecture.

Keys and defaults are those of the transformers library's config classes, both the older spelling (rope_theta,
rope_scaling) and the one of its version 5 (rope_parameters).
"""

from collections.abc import Callable
from typing import Any

from tokenworks.kernels.program import Activation
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, DecoderLayer, EncoderConfig, Llama3Scaling, Rope
from tokenworks.models.fields import Fields
from tokenworks.models.json_file import read_json, read_json_value
from tokenworks.protocol.errors import ModelError

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_QKVO = frozenset("qkvo")


def llama(f: Fields) -> DecoderConfig:
    mlp = frozenset({"gate", "up", "down"}) if f.flag("mlp_bias", False) else frozenset[str]()
    return _decoder(f, "llama", biased=_attention_biases(f) | mlp)


def qwen2(f: Fields) -> DecoderConfig:
    return _decoder(f, "qwen2", biased=frozenset("qkv"))


def qwen3(f: Fields) -> DecoderConfig:
    return _decoder(f, "qwen3", biased=_attention_biases(f), qk_norm=True, head_size=f.integer("head_dim", 128))


def gemma3(f: Fields) -> DecoderConfig:
    f.refuse("use_bidirectional_attention", (False,), "only causal attention is supported for this architecture")
    head_size = f.integer("head_dim", 256)
    pattern = f.integer("sliding_window_pattern", 6)
    count = f.integer("num_hidden_layers", 26, maximum=MAX_LAYERS)
    parameters = f.section("rope_parameters")
    if parameters is None:
        ropes = {
            "global": _rope(f.section("rope_scaling"), f.number("rope_theta", 1e6)),
            "local": Rope(base=f.number("rope_local_base_freq", 1e4)),
        }
    else:
        ropes = {
            "global": _rope(parameters.section("full_attention"), 1e6),
            "local": _rope(parameters.section("sliding_attention"), 1e4),
        }
    return _decoder(
        f,
        "gemma3",
        sliding=_sliding(f, count, [(number + 1) % pattern != 0 for number in range(count)]),
        window_default=4096,
        ropes=ropes,
        local_rope=True,
        head_size=head_size,
        kv_heads=f.integer("num_key_value_heads", 4),
        activation=f.one_of("hidden_activation", _ACTIVATIONS, "gelu_pytorch_tanh"),
        attention_scale=f.number("query_pre_attn_scalar", 256) ** -0.5,
        biased=_attention_biases(f),
        tied_head=f.flag("tie_word_embeddings", True),
        qk_norm=True,
        sandwich_norms=True,
        embedding_scale=f.integer("hidden_size") ** 0.5,
        attention_softcap=_softcap(f, "attn_logit_softcapping"),
        logit_softcap=_softcap(f, "final_logit_softcapping"),
    )


def bert(f: Fields) -> EncoderConfig:
    f.refuse("position_embedding_type", ("absolute",), "only absolute position embeddings are supported")
    f.refuse("is_decoder", (False,), "only encoders are supported for this architecture")
    width, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    if width % heads:
        raise f.wrong("num_attention_heads", f"a divisor of hidden_size ({width})")
    positions = f.integer("max_position_embeddings", 512)
    limit_path = f.path.parent / "sentence_bert_config.json"
    limits = Fields(limit_path, read_json(limit_path) if limit_path.exists() else {})
    pooling, normalise = _sentence_modules(f)
    return EncoderConfig(
        architecture="bert",
        vocabulary=f.integer("vocab_size"),
        context_tokens=min(positions, limits.integer("max_seq_length", positions)),
        positions=positions,
        token_types=f.integer("type_vocab_size", 2),
        width=width,
        heads=heads,
        head_size=width // heads,
        mlp_width=f.integer("intermediate_size"),
        layers=f.integer("num_hidden_layers", maximum=MAX_LAYERS),
        activation=f.one_of("hidden_act", _ACTIVATIONS, "gelu"),
        norm_epsilon=f.number("layer_norm_eps", 1e-12),
        pooling=pooling,
        normalise=normalise,
    )


def _decoder(
    f: Fields,
    architecture: str,
    *,
    sliding: list[bool] | None = None,
    window_default: int | None = None,
    ropes: dict[str, Rope] | None = None,
    local_rope: bool = False,
    **differences: Any,
) -> DecoderConfig:
    """What all decoders share; `differences` are fields of DecoderConfig that the architecture reads its own way."""
    width, heads, count = (
        f.integer("hidden_size"),
        f.integer("num_attention_heads"),
        f.integer("num_hidden_layers", maximum=MAX_LAYERS),
    )
    if sliding is None:
        first = f.table.get("max_window_layers", 0)
        slides = f.table.get("use_sliding_window", False) is True and isinstance(first, int)
        sliding = _sliding(f, count, [slides and number >= first for number in range(count)])
    window = f.integer("sliding_window", window_default) if any(sliding) else 0
    if ropes is None:
        section = f.section("rope_parameters") or f.section("rope_scaling")
        ropes = {"global": _rope(section, f.number("rope_theta", 1e4))}
    fields: dict[str, Any] = {
        "vocabulary": f.integer("vocab_size"),
        "context_tokens": f.integer("max_position_embeddings"),
        "width": width,
        "heads": heads,
        "kv_heads": f.integer("num_key_value_heads", heads),
        "head_size": f.integer("head_dim", max(1, width // heads)),
        "mlp_width": f.integer("intermediate_size"),
        "norm_epsilon": f.number("rms_norm_eps", 1e-6),
        "tied_head": f.flag("tie_word_embeddings", False),
        **differences,
    }
    if "activation" not in fields:
        fields["activation"] = f.one_of("hidden_act", _ACTIVATIONS, "silu")
    if "attention_scale" not in fields:
        fields["attention_scale"] = fields["head_size"] ** -0.5
    if heads % fields["kv_heads"]:
        raise f.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if fields["head_size"] % 2:
        raise f.wrong("head_dim", "an even number")
    layers = tuple(
        DecoderLayer(window=window if slides else 0, rope="local" if slides and local_rope else "global")
        for slides in sliding
    )
    return DecoderConfig(architecture=architecture, layers=layers, ropes=ropes, **fields)


def _attention_biases(f: Fields) -> frozenset[str]:
    return _QKVO if f.flag("attention_bias", False) else frozenset()


def _softcap(f: Fields, key: str) -> float:
    return f.number(key) if f.has(key) else 0.0


def _sliding(f: Fields, count: int, default: list[bool]) -> list[bool]:
    """For each layer, whether it has a window."""
    kinds = f.table.get("layer_types")
    if kinds is None:
        return default
    known = {"full_attention": False, "sliding_attention": True}
    if not isinstance(kinds, list) or len(kinds) != count or not all(str(kind) in known for kind in kinds):
        raise f.wrong("layer_types", f"{count} of {', '.join(known)}")
    return [known[kind] for kind in kinds]


def _rope(section: Fields | None, base: float) -> Rope:
    """A table like {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8, ...}; older files say "type"."""
    if section is None:
        return Rope(base=base)
    section.refuse("partial_rotary_factor", (1, 1.0), "only whole heads can be rotated")
    base = section.number("rope_theta", base)
    readers: dict[str, Callable[[], Rope]] = {
        "default": lambda: Rope(base=base),
        "linear": lambda: Rope(base=base, factor=section.number("factor")),
        "llama3": lambda: Rope(base=base, llama3=_llama3(section)),
    }
    return section.one_of("rope_type" if section.has("rope_type") else "type", readers, "default")()


def _llama3(section: Fields) -> Llama3Scaling:
    return Llama3Scaling(
        factor=section.number("factor"),
        low=section.number("low_freq_factor"),
        high=section.number("high_freq_factor"),
        original_tokens=section.integer("original_max_position_embeddings"),
    )


def _sentence_modules(f: Fields) -> tuple[Any, bool]:
    """How modules.json (sentence-transformers) says vectors are made of a text's rows: (pooling, normalise).

    A checkpoint without it gets what that library then does: the mean, not normalised.
    """
    folder = f.path.parent
    path = folder / "modules.json"
    if not path.exists():
        return "mean", False
    pooling, normalise = "mean", False
    modules = read_json_value(path)
    for module in modules if isinstance(modules, list) else [modules]:
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind == "Pooling":
            pooling = _pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise ModelError(f"{path}: module {module!r} is not supported; Transformer, Pooling and Normalize are.")
    return pooling, normalise


def _pooling(path: Any) -> str:
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
    chosen = [key for key, value in read_json(path).items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in modes:
        raise ModelError(f"{path}: pooling {chosen} is not supported; exactly one of {', '.join(modes)} is.")
    return modes[chosen[0]]
