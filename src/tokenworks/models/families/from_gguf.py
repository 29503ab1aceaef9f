"""What a GGUF file's metadata says of a decoder, and what it calls the weights, as far as families share it.

Keys are listed in ggml's docs/gguf.md; what files leave unsaid follows llama.cpp's loader (src/llama-model.cpp).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Layer
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufArray, GgufFile
from tokenworks.models.files.names import LAYER, FileNames, weights_and_biases
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.rope import LongRope, Rope, Yarn, yarn_scale
from tokenworks.protocol.errors import ModelError

_BIAS = re.compile(r"blk\.\d+\.(\w+)\.bias")


def fields(file: GgufFile) -> Fields:
    """The metadata under the architecture's own prefix."""
    return Fields(file.path, file.metadata, f"{file.metadata['general.architecture']}.")


def decoder(
    f: Fields,
    file: GgufFile,
    mixers: Sequence[Mixer | None],
    feed_forwards: FeedForward | Sequence[FeedForward | None],
    ropes: dict[str, Rope],
    **differences: Any,
) -> DecoderConfig:
    """`mixers`, `feed_forwards`: one for each layer, or one of all.

    `differences`: fields of DecoderConfig that are read another way than here.
    """
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing.")
    if not isinstance(feed_forwards, Sequence):
        feed_forwards = [feed_forwards] * len(mixers)
    fields: dict[str, Any] = {
        "vocabulary": embedding.shape[0],
        "context_tokens": f.integer("context_length"),
        "width": f.integer("embedding_length"),
        "layers": tuple(Layer(mixer=m, feed_forward=n) for m, n in zip(mixers, feed_forwards, strict=True)),
        "ropes": ropes,
        "tied_head": "output.weight" not in file.tensors,
        **differences,
    }
    if "norm_epsilon" not in fields:
        fields["norm_epsilon"] = norm_epsilon(f)
    return DecoderConfig(architecture=f.prefix.removesuffix("."), **fields)


def layer_count(f: Fields) -> int:
    """Without those behind the last one, which guess further tokens."""
    count = f.integer("block_count", maximum=MAX_LAYERS) - f.count("nextn_predict_layers")
    if count < 1:
        raise f.wrong("nextn_predict_layers", "less than block_count")
    return count


def of_layers(f: Fields, file: GgufFile, key: str, count: int) -> list[int]:
    """What a key says of each of the first `count` layers: a number or a flag of all, or a list that has one for each.

    Raises ModelError when it is missing or none of these.
    """
    value = f.table.get(f.prefix + key)
    values: list[Any] = file.array(f.prefix + key) if isinstance(value, GgufArray) else [value] * count
    if len(values) < count or not all(isinstance(each, int) and each >= 0 for each in values):
        raise f.wrong(key, f"an integer, or {count} of them")
    return [int(each) for each in values[:count]]


def attention(f: Fields, file: GgufFile, turned_by: Rope, kv_heads: int | None = None) -> Attention:
    """With one rotary encoding, "global", and no window. `kv_heads`: where the file says it for each layer."""
    size, heads = head_size(f), f.integer("attention.head_count")
    if kv_heads is None:
        kv_heads = f.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise f.wrong("attention.head_count_kv", f"a divisor of attention.head_count ({heads})")
    f.refuse("attention.value_length", (size,), f"it must equal the key length ({size})")
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        scale=size**-0.5,
        rope="global",
        turned=turned_by.size,
        turned_scale=turned_by.scale,
        biased=biased(file, {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}),
    )


def head_size(f: Fields) -> int:
    shared = f.integer("embedding_length") // f.integer("attention.head_count")
    size = f.integer("attention.key_length", max(1, shared))
    if size % 2:
        raise f.wrong("attention.key_length", "an even number")
    return size


def mlp(f: Fields, file: GgufFile) -> Mlp:
    f.refuse("expert_count", (0,), f"{f.prefix.removesuffix('.')} models with experts are not supported")
    return Mlp(
        width=f.integer("feed_forward_length"),
        activation="silu",
        biased=biased(file, MLP_MAPS),
    )


def norm_epsilon(f: Fields) -> float:
    return f.number("attention.layer_norm_rms_epsilon")


def rope(f: Fields, file: GgufFile, base: float = 1e4) -> Rope:
    """The only rotary encoding, or that of layers without a window; `base` where the file says none."""
    base, size = f.number("rope.freq_base", base), head_size(f)
    turned = f.integer("rope.dimension_count", size, maximum=size)
    divisors: tuple[float, ...] = ()
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is not None:
        divisors = tuple(dequantise(tensor).tolist())
        if len(divisors) != turned // 2 or not all(value > 0 for value in divisors):
            raise ModelError(f"{file.path}: rope_freqs.weight must be {turned // 2} positive numbers.")
    factors = [file.tensors.get(f"rope_factors_{kind}.weight") for kind in ("short", "long")]
    if factors[0] is not None and factors[1] is not None:
        return _longrope(f, turned, base, factors[0], factors[1])
    readers: dict[str, Callable[[], Rope]] = {
        "none": lambda: Rope(size=turned, base=base, divisors=divisors),
        "linear": lambda: Rope(size=turned, base=base, divisors=divisors, factor=f.number("rope.scaling.factor")),
        "yarn": lambda: _yarn(f, turned, base),
    }
    return f.one_of("rope.scaling.type", readers, "none")()


def _yarn(f: Fields, turned: int, base: float) -> Rope:
    factor = f.number("rope.scaling.factor")
    by = Yarn(
        factor=factor,
        fast=f.number("rope.scaling.yarn_beta_fast", 32),
        slow=f.number("rope.scaling.yarn_beta_slow", 1),
        original_tokens=f.integer("rope.scaling.original_context_length"),
        whole=True,
    )
    scale = f.number("rope.scaling.yarn_attn_factor", yarn_scale(factor))
    return Rope(size=turned, base=base, stretched=by, scale=scale)


def _longrope(f: Fields, turned: int, base: float, short: Tensor, long: Tensor) -> Rope:
    numbers = [tuple(dequantise(tensor).ravel().tolist()) for tensor in (short, long)]
    if any(len(each) != turned // 2 or not all(value > 0 for value in each) for each in numbers):
        raise ModelError(f"{f.path}: {short.name} and {long.name} must be {turned // 2} positive numbers each.")
    by = LongRope(
        short=numbers[0],
        long=numbers[1],
        original_tokens=f.integer("rope.scaling.original_context_length", f.integer("context_length")),
    )
    return Rope(size=turned, base=base, stretched=by, scale=f.number("rope.scaling.attn_factor", 1.0))


def biased(file: GgufFile, maps: dict[str, str]) -> frozenset[str]:
    """Which of some linear maps have a bias in some layer: name within the layer -> name in the file."""
    found = {match[1] for name in file.tensors if (match := _BIAS.fullmatch(name))}
    return frozenset(ours for ours, theirs in maps.items() if theirs in found)


MLP_MAPS = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
NAMES = FileNames(
    {
        "embed": "token_embd.weight",
        "norm": "output_norm.weight",
        "head": "output.weight",
        **weights_and_biases(
            {
                "q": "blk.{}.attn_q",
                "k": "blk.{}.attn_k",
                "v": "blk.{}.attn_v",
                "o": "blk.{}.attn_output",
                **{ours: f"blk.{{}}.{theirs}" for ours, theirs in MLP_MAPS.items()},
            }
        ),
        **{
            f"{LAYER}{ours}": f"blk.{{}}.{theirs}.weight"
            for ours, theirs in {
                "q_norm": "attn_q_norm",
                "k_norm": "attn_k_norm",
                "attention_norm": "attn_norm",
                "attention_post_norm": "post_attention_norm",
                "mlp_norm": "ffn_norm",
                "mlp_post_norm": "post_ffw_norm",
            }.items()
        },
    },
    unused=("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),  # the config has them
)
