"""What a GGUF file's metadata says of a decoder, and what it calls the weights, as far as families share it.

Keys are listed in ggml's docs/gguf.md; what files leave unsaid follows llama.cpp's loader (src/llama-model.cpp).
"""

from collections.abc import Sequence
from typing import Any

from tokenworks.kernels.formats import dequantise
from tokenworks.models.attention import Attention
from tokenworks.models.config import MAX_LAYERS, DecoderConfig, Layer, Rope
from tokenworks.models.fields import Fields
from tokenworks.models.files import LAYER, FileNames, weights_and_biases
from tokenworks.models.gguf import GgufFile
from tokenworks.models.mlp import Mlp
from tokenworks.models.parts import FeedForward, Mixer
from tokenworks.protocol.errors import ModelError


def fields(file: GgufFile) -> Fields:
    """The metadata under the architecture's own prefix."""
    return Fields(file.path, file.metadata, f"{file.metadata['general.architecture']}.")


def decoder(
    f: Fields,
    file: GgufFile,
    mixers: Attention | Sequence[Mixer],
    feed_forwards: FeedForward | Sequence[FeedForward],
    **differences: Any,
) -> DecoderConfig:
    """`mixers`, `feed_forwards`: one for each layer, or one of all.

    `differences`: fields of DecoderConfig that are read another way than here.
    """
    f.refuse("expert_count", (0,), "mixtures of experts are not supported")
    count = f.integer("block_count", maximum=MAX_LAYERS)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing.")
    if isinstance(mixers, Attention):
        differences.setdefault("ropes", {mixers.rope: rope(f, file, mixers.head_size, 1e4)})
        mixers = [mixers] * count
    if not isinstance(feed_forwards, Sequence):
        feed_forwards = [feed_forwards] * count
    return DecoderConfig(
        architecture=f.prefix.removesuffix("."),
        vocabulary=embedding.shape[0],
        context_tokens=f.integer("context_length"),
        width=f.integer("embedding_length"),
        layers=tuple(Layer(mixer=m, feed_forward=n) for m, n in zip(mixers, feed_forwards, strict=True)),
        norm_epsilon=norm_epsilon(f),
        tied_head="output.weight" not in file.tensors,
        **differences,
    )


def attention(f: Fields, file: GgufFile) -> Attention:
    width, heads = f.integer("embedding_length"), f.integer("attention.head_count")
    size = f.integer("attention.key_length", max(1, width // heads))
    kv_heads = f.integer("attention.head_count_kv", heads)
    if size % 2:
        raise f.wrong("attention.key_length", "an even number")
    if heads % kv_heads:
        raise f.wrong("attention.head_count_kv", f"a divisor of attention.head_count ({heads})")
    f.refuse("attention.value_length", (size,), f"it must equal the key length ({size})")
    f.refuse("rope.dimension_count", (size,), f"only whole heads ({size}) can be rotated")
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        scale=size**-0.5,
        rope="global",
        biased=_biased(file, {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}),
    )


def mlp(f: Fields, file: GgufFile) -> Mlp:
    return Mlp(
        width=f.integer("feed_forward_length"),
        activation="silu",
        biased=_biased(file, {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}),
    )


def norm_epsilon(f: Fields) -> float:
    return f.number("attention.layer_norm_rms_epsilon")


def rope(f: Fields, file: GgufFile, size: int, base: float) -> Rope:
    """Of heads of `size`; `base` where the file says none."""
    base = f.number("rope.freq_base", base)
    factor_of = {"none": lambda: 1.0, "linear": lambda: f.number("rope.scaling.factor")}
    divisors: tuple[float, ...] = ()
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is not None:
        divisors = tuple(dequantise(tensor).tolist())
        if len(divisors) != size // 2 or not all(value > 0 for value in divisors):
            raise ModelError(f"{file.path}: rope_freqs.weight must be {size // 2} positive numbers.")
    return Rope(size=size, base=base, factor=f.one_of("rope.scaling.type", factor_of, "none")(), divisors=divisors)


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
