"""Decoders with LayerNorm (arXiv 1607.06450), in some of which both parts of a layer look at the same stream.

GPT-NeoX, Pythia (arXiv 2204.06745, 2304.01373)    parallel, a norm for each part; q, k, v of a head side by side
Phi 1 to 2 (arXiv 2306.11644)                      parallel, one norm for both parts; a network without gate
Command R                                          as Phi, gated, no biases; R7B and A have windows in turn, and no
                                                   positions in layers that see everything
StableLM 2 (arXiv 2402.17834)                      Llama's order and network
StarCoder 2 (arXiv 2402.19173)                     Llama's order, a network without gate
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tokenworks.kernels.program import Activation
from tokenworks.models.config import DecoderConfig
from tokenworks.models.families import from_gguf, from_hf
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.files.names import LAYER, GgufArchitecture, HfArchitecture, Rows, weights_and_biases
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.part import FeedForward, Mixer
from tokenworks.models.parts.rope import Rope
from tokenworks.protocol.errors import ModelError

_UNGATED = frozenset({"up", "down"})


def _decoder(
    f: Fields, name: str, mixers: Sequence[Mixer], network: FeedForward, rope: Rope, **differences: Any
) -> DecoderConfig:
    fields = {"norm_epsilon": f.number("layer_norm_eps", 1e-5), "biased_norms": True, **differences}
    return from_hf.decoder(f, name, mixers, network, {"global": rope}, centred_norms=True, **fields)


def _neox(f: Fields) -> DecoderConfig:
    rope = from_hf.only_rope(f, base=f.number("rotary_emb_base", 1e4), share=f.number("rotary_pct", 0.25))
    biased = frozenset("qkvo") if f.flag("attention_bias", True) else frozenset[str]()
    attention = from_hf.attention(f, rope, kv_heads=f.integer("num_attention_heads"), biased=biased)
    mlp = from_hf.mlp(f, activation=f.one_of("hidden_act", from_hf.ACTIVATIONS, "gelu"), gated=False, biased=_UNGATED)
    parallel = "own norm" if f.flag("use_parallel_residual", True) else "no"
    return _decoder(f, "gpt_neox", [attention] * from_hf.layer_count(f), mlp, rope, parallel=parallel)


def _phi(f: Fields) -> DecoderConfig:
    f.refuse("qk_layernorm", (False,), "norms of q and k are not supported for this architecture")
    rope = from_hf.only_rope(f, share=0.5)
    attention = from_hf.attention(f, rope, biased=frozenset("qkvo"))
    mlp = from_hf.mlp(
        f, activation=f.one_of("hidden_act", from_hf.ACTIVATIONS, "gelu_new"), gated=False, biased=_UNGATED
    )
    mixers = [attention] * from_hf.layer_count(f)
    return _decoder(f, "phi", mixers, mlp, rope, parallel="same norm", biased_head=True)


def _cohere(f: Fields) -> DecoderConfig:
    f.refuse("use_qk_norm", (False,), "norms of q and k are not supported for this architecture")
    rope = from_hf.only_rope(f, base=5e5)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f))
    return _command(f, "cohere", [attention] * from_hf.layer_count(f), rope)


def _cohere2(f: Fields) -> DecoderConfig:
    rope, pattern = from_hf.only_rope(f), f.integer("sliding_window_pattern", 4)
    attention = from_hf.attention(f, rope, biased=from_hf.attention_biases(f))
    windows = from_hf.windows(f, from_hf.sliding(f, lambda number: (number + 1) % pattern != 0), 4096)
    mixers = [replace(attention, window=window, rope="global" if window else "") for window in windows]
    return _command(f, "cohere2", mixers, rope)


def _command(f: Fields, name: str, mixers: Sequence[Mixer], rope: Rope) -> DecoderConfig:
    return _decoder(
        f,
        name,
        mixers,
        from_hf.mlp(f),
        rope,
        parallel="same norm",
        biased_norms=False,
        logit_scale=f.number("logit_scale", 0.0625),
        tied_head=f.flag("tie_word_embeddings", True),
    )


def _stablelm(f: Fields) -> DecoderConfig:
    f.refuse("qk_layernorm", (False,), "norms of q and k are not supported for this architecture")
    rope = from_hf.only_rope(f, share=0.25)
    biased = frozenset("qkv") if f.flag("use_qkv_bias", False) else frozenset[str]()
    attention = from_hf.attention(f, rope, biased=biased)
    parallel = "same norm" if f.flag("use_parallel_residual", False) else "no"
    return _decoder(f, "stablelm", [attention] * from_hf.layer_count(f), from_hf.mlp(f), rope, parallel=parallel)


def _starcoder2(f: Fields) -> DecoderConfig:
    rope, biases = from_hf.only_rope(f), f.flag("use_bias", True)
    window = f.integer("sliding_window") if f.has("sliding_window") else 0
    attention = from_hf.attention(f, rope, window=window, biased=frozenset("qkvo") if biases else frozenset())
    mlp = from_hf.mlp(
        f,
        activation=f.one_of("hidden_act", from_hf.ACTIVATIONS, "gelu_pytorch_tanh"),
        gated=False,
        biased=_UNGATED if biases else frozenset(),
    )
    return _decoder(
        f,
        "starcoder2",
        [attention] * from_hf.layer_count(f),
        mlp,
        rope,
        norm_epsilon=f.number("norm_epsilon", 1e-5),
        tied_head=f.flag("tie_word_embeddings", True),
    )


def _decoder_gguf(
    f: Fields, file: GgufFile, mixers: Sequence[Mixer], network: FeedForward, rope: Rope, **differences: Any
) -> DecoderConfig:
    fields = {"norm_epsilon": f.number("attention.layer_norm_epsilon"), "biased_norms": True, **differences}
    return from_gguf.decoder(f, file, mixers, network, {"global": rope}, centred_norms=True, **fields)


def _ungated_gguf(f: Fields, file: GgufFile, activation: Activation) -> Mlp:
    biased = from_gguf.biased(file, {m: from_gguf.MLP_MAPS[m] for m in _UNGATED})
    return Mlp(width=f.integer("feed_forward_length"), activation=activation, gated=False, biased=biased)


def _neox_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = from_gguf.attention(f, file, rope)
    if "blk.0.attn_qkv.bias" in file.tensors:
        attention = replace(attention, biased=attention.biased | set("qkv"))
    mixers = [attention] * from_gguf.layer_count(f)
    parallel = "own norm" if f.flag("use_parallel_residual", True) else "no"
    return _decoder_gguf(f, file, mixers, _ungated_gguf(f, file, "gelu"), rope, parallel=parallel)


def _phi_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    mlp, biased = _ungated_gguf(f, file, "gelu_tanh"), "output.bias" in file.tensors
    return _decoder_gguf(f, file, mixers, mlp, rope, parallel="same norm", biased_head=biased)


def _command_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    if "blk.0.attn_q_norm.weight" in file.tensors:
        raise ModelError(f"{file.path}: norms of q and k are not supported for architecture {f.prefix[:-1]!r}.")
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    if window := f.count("attention.sliding_window"):
        seeing = [(number + 1) % 4 == 0 for number in range(len(mixers))]
        mixers = [
            replace(mixer, rope="") if sees else replace(mixer, window=window)
            for mixer, sees in zip(mixers, seeing, strict=True)
        ]
    differences = {"biased_norms": False, "logit_scale": f.number("logit_scale", 0.0625)}
    return _decoder_gguf(f, file, mixers, from_gguf.mlp(f, file), rope, parallel="same norm", **differences)


def _stablelm_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    if "blk.0.attn_q_norm.weight" in file.tensors:
        raise ModelError(f"{file.path}: norms of q and k are not supported for architecture 'stablelm'.")
    rope = from_gguf.rope(f, file)
    mixers = [from_gguf.attention(f, file, rope)] * from_gguf.layer_count(f)
    parallel = "same norm" if f.flag("use_parallel_residual", True) else "no"
    return _decoder_gguf(f, file, mixers, from_gguf.mlp(f, file), rope, parallel=parallel)


def _starcoder2_gguf(file: GgufFile) -> DecoderConfig:
    f = from_gguf.fields(file)
    rope = from_gguf.rope(f, file)
    attention = replace(from_gguf.attention(f, file, rope), window=f.count("attention.sliding_window"))
    mixers = [attention] * from_gguf.layer_count(f)
    return _decoder_gguf(f, file, mixers, _ungated_gguf(f, file, "gelu_tanh"), rope)


def _third(place: int) -> Rows:
    """The rows of q, k or v where each head has all three."""

    def rows(mixer: Mixer | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        assert isinstance(mixer, Attention)
        starts = (3 * np.arange(mixer.heads) + place) * mixer.head_size
        return (starts[:, None] + np.arange(mixer.head_size)).reshape(-1)

    return rows


_IN_LAYER = "model.layers.{}."
_BIASES = {
    "norm.bias": "model.norm.bias",
    LAYER + "attention_norm.bias": _IN_LAYER + "input_layernorm.bias",
    LAYER + "mlp_norm.bias": _IN_LAYER + "post_attention_layernorm.bias",
}
_LLAMA_LIKE = replace(from_hf.NAMES, names=from_hf.NAMES.names | _BIASES)
_NEOX_LAYER = "gpt_neox.layers.{}."
_NEOX_MAPS = {
    **dict.fromkeys("qkv", "attention.query_key_value"),
    "o": "attention.dense",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_THIRDS = {LAYER + m + kind: _third(place) for place, m in enumerate("qkv") for kind in ("", ".bias")}

GPT_NEOX = HfArchitecture(
    _neox,
    replace(
        from_hf.NAMES,
        names={
            "embed": "gpt_neox.embed_in.weight",
            "norm": "gpt_neox.final_layer_norm.weight",
            "norm.bias": "gpt_neox.final_layer_norm.bias",
            "head": "embed_out.weight",
            **weights_and_biases({ours: _NEOX_LAYER + theirs for ours, theirs in _NEOX_MAPS.items()}),
        },
        rows=_THIRDS,
        unused=(*from_hf.NAMES.unused, "*.attention.bias", "*.attention.masked_bias", "embed_out.weight"),
        prefixes=(("lm_head.", "embed_out."),),
    ),
)
_PHI_MAPS = {"o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}
PHI = HfArchitecture(
    _phi,
    replace(
        _LLAMA_LIKE,
        names={
            **_LLAMA_LIKE.names,
            **weights_and_biases({ours: _IN_LAYER + theirs for ours, theirs in _PHI_MAPS.items()}),
            "norm": "model.final_layernorm.weight",
            "norm.bias": "model.final_layernorm.bias",
            "head.bias": "lm_head.bias",
        },
    ),
)
COHERE = HfArchitecture(_cohere, replace(from_hf.NAMES, rows=from_hf.PAIRED_ROWS))
COHERE2 = HfArchitecture(_cohere2, replace(from_hf.NAMES, rows=from_hf.PAIRED_ROWS))
STABLELM = HfArchitecture(_stablelm, _LLAMA_LIKE)
_STARCODER2_MAPS = {"up": _IN_LAYER + "mlp.c_fc", "down": _IN_LAYER + "mlp.c_proj"}
STARCODER2 = HfArchitecture(
    _starcoder2, replace(_LLAMA_LIKE, names=_LLAMA_LIKE.names | weights_and_biases(_STARCODER2_MAPS))
)

_GGUF_BIASES = {
    "norm.bias": "output_norm.bias",
    "head.bias": "output.bias",
    LAYER + "attention_norm.bias": "blk.{}.attn_norm.bias",
    LAYER + "mlp_norm.bias": "blk.{}.ffn_norm.bias",
}
_GGUF = replace(from_gguf.NAMES, names=from_gguf.NAMES.names | _GGUF_BIASES)
_TOGETHER = {
    LAYER + m + kind: f"blk.{{}}.attn_qkv{end}" for m in "qkv" for kind, end in (("", ".weight"), (".bias",) * 2)
}
GPT_NEOX_GGUF = GgufArchitecture(_neox_gguf, replace(_GGUF, names=_GGUF.names | _TOGETHER))
PHI_GGUF = GgufArchitecture(_phi_gguf, _GGUF)
COHERE_GGUF = GgufArchitecture(_command_gguf, replace(from_gguf.NAMES, interleaved_rotary=True))
STABLELM_GGUF = GgufArchitecture(_stablelm_gguf, _GGUF)
STARCODER2_GGUF = GgufArchitecture(_starcoder2_gguf, _GGUF)
