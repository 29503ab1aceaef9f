"""Mixtral (arXiv 2401.04088): Llama with eight experts in every layer, two for each token."""

from dataclasses import replace

from tokenworks.kernels.check import MOST_EXPERTS
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf, llama, mixtures
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture


def _read(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f, base=1e6)
    windows = from_hf.windows(f, [f.has("sliding_window")] * from_hf.layer_count(f))
    mixers = [from_hf.attention(f, rope, window=window) for window in windows]
    feed_forward = mixtures.mixture(
        f,
        experts=f.integer("num_local_experts", maximum=MOST_EXPERTS),
        width=f.integer("intermediate_size"),
        normalise=True,
    )
    epsilon = from_hf.norm_epsilon(f, 1e-5)
    return from_hf.decoder(f, "mixtral", mixers, feed_forward, {"global": rope}, norm_epsilon=epsilon)


def _read_gguf(file: GgufFile) -> DecoderConfig:
    """Mixtral files are of architecture "llama"; their experts tell them from Llama's."""
    f = from_gguf.fields(file)
    if not f.table.get(f"{f.prefix}expert_count"):
        return llama.of_gguf(file)
    feed_forward = mixtures.mixture_gguf(f, file, normalise=True)
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    return from_gguf.decoder(f, file, mixers, feed_forward, {"global": rope})


_EXPERTS = "model.layers.{}.block_sparse_moe.experts"
_MAPS = {"gate": "w1", "up": "w3", "down": "w2"}
_NAMES = {**mixtures.names(_EXPERTS, _MAPS), f"{LAYER}router": "model.layers.{}.block_sparse_moe.gate.weight"}

MIXTRAL = HfArchitecture(
    _read,
    replace(
        from_hf.NAMES,
        names=from_hf.NAMES.names | _NAMES,
        respelt=((".mlp.", ".block_sparse_moe."),),  # transformers' own, since its version 5
        stacks=mixtures.stacks(_EXPERTS, _MAPS),
    ),
)
LLAMA_GGUF = GgufArchitecture(
    _read_gguf,
    replace(
        from_gguf.NAMES,
        names=from_gguf.NAMES.names | mixtures.GGUF_NAMES,
        stacks=mixtures.GGUF_STACKS,
        interleaved_rotary=True,
    ),
)
