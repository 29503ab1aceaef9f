"""What a GGUF file's metadata says of a decoder, and what it calls the weights, as far as families share it.

Keys are listed in ggml's docs/gguf.md; what files leave unsaid follows llama.cpp's loader (src/llama-model.cpp).
"""

from collections.abc import Callable, Sequence
from typing import Any

from tokenworks.kernels.formats import dequantise
from tokenworks.models.attention import Attention
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Layer
from tokenworks.models.fields import Fields
from tokenworks.models.files import LAYER, FileNames, weights_and_biases
from tokenworks.models.gguf import GgufFile
from tokenworks.models.mlp import Mlp
from tokenworks.models.parts import FeedForward, Mixer
from tokenworks.models.rope import Rope, Yarn, yarn_scale
from tokenworks.protocol.errors import ModelError


def fields(file: GgufFile) -> Fields:
    """The metadata under the architecture's own prefix."""
    return Fields(file.path, file.metadata, f"{file.metadata['general.architecture']}.")


def decoder(
    f: Fields,
    file: GgufFile,
    mixers: Sequence[Mixer],
    feed_forwards: FeedForward | Sequence[FeedForward],
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
        "norm_epsilon": norm_epsilon(f),
        "tied_head": "output.weight" not in file.tensors,
        **differences,
    }
    return DecoderConfig(architecture=f.prefix.removesuffix("."), **fields)


def layer_count(f: Fields) -> int:
    return f.integer("block_count", maximum=MAX_LAYERS)


def attention(f: Fields, file: GgufFile, turned_by: Rope) -> Attention:
    """With one rotary encoding, "global", and no window."""
    size, heads = head_size(f), f.integer("attention.head_count")
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
        biased=_biased(file, {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}),
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
        biased=_biased(file, {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}),
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
    return Rope(size=turned, base=base, stretched=by, scale=yarn_scale(factor))


def _biased(file: GgufFile, maps: dict[str, str]) -> frozenset[str]:
    return frozenset(ours for ours, theirs in maps.items() if f"blk.0.{theirs}.bias" in file.tensors)


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
                "gate": "blk.{}.ffn_gate",
                "up": "blk.{}.ffn_up",
                "down": "blk.{}.ffn_down",
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
    unused=("rope_freqs.weight",),  # the config has it
)
