"""BERT, RoBERTa, Nomic BERT and ModernBERT from GGUF files, as they make vectors of texts.

What the metadata leaves unsaid follows llama.cpp: vectors are normalised, the mean where no pooling is named.
"""

from typing import Literal

from tokenworks.models.config import EncoderConfig
from tokenworks.models.encoder import VectorHead
from tokenworks.models.families import from_gguf
from tokenworks.models.families.from_hf import ACTIVATIONS
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.gguf import GgufArray, GgufFile
from tokenworks.models.files.names import FileNames, GgufArchitecture, weights_and_biases
from tokenworks.models.parts.bert import BertBody
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.modernbert import ModernBertBody
from tokenworks.models.parts.rope import Rope
from tokenworks.protocol.errors import ModelError

_POOLING: dict[str, Literal["mean", "first"]] = {"1": "mean", "2": "first"}


def _bert(file: GgufFile) -> EncoderConfig:
    f = from_gguf.fields(file)
    width, heads = _width_and_heads(f)
    body = BertBody(
        vocabulary=_rows(file, "token_embd.weight"),
        positions=_rows(file, "position_embd.weight"),
        token_types=_rows(file, "token_types.weight"),
        width=width,
        heads=heads,
        mlp=Mlp(
            width=f.integer("feed_forward_length"), activation="gelu", gated=False, biased=frozenset({"up", "down"})
        ),
        layers=from_gguf.layer_count(f),
        norm_epsilon=f.number("attention.layer_norm_epsilon"),
    )
    context = min(f.integer("context_length"), body.positions)
    return EncoderConfig(
        architecture="bert",
        vocabulary=body.vocabulary,
        context_tokens=context,
        width=width,
        body=body,
        head=_head(f),
    )


def _nomic_bert(file: GgufFile) -> EncoderConfig:
    f = from_gguf.fields(file)
    width, heads = _width_and_heads(f)
    body = BertBody(
        vocabulary=_rows(file, "token_embd.weight"),
        positions=0,
        token_types=_rows(file, "token_types.weight"),
        width=width,
        heads=heads,
        mlp=Mlp(width=f.integer("feed_forward_length"), activation="silu"),
        layers=from_gguf.layer_count(f),
        norm_epsilon=f.number("attention.layer_norm_epsilon"),
        biased=frozenset(),
    )
    return EncoderConfig(
        architecture="nomic-bert",
        vocabulary=body.vocabulary,
        context_tokens=f.integer("context_length"),
        width=width,
        body=body,
        head=_head(f),
        ropes={"global": Rope(size=width // heads, base=f.number("rope.freq_base", 1e3))},
    )


def _modern_bert(file: GgufFile) -> EncoderConfig:
    f = from_gguf.fields(file)
    width, heads = _width_and_heads(f)
    near, count = f.count("attention.sliding_window"), from_gguf.layer_count(f)
    window = near // 2 + 1 if near else 0
    pattern = f.table.get(f.prefix + _PATTERN)
    if isinstance(pattern, GgufArray):
        slides = [bool(each) for each in from_gguf.of_layers(f, file, _PATTERN, count)]
    else:
        every = f.integer(_PATTERN, 3)
        slides = [number % every != 0 for number in range(count)]
    body = ModernBertBody(
        vocabulary=_rows(file, "token_embd.weight"),
        width=width,
        heads=heads,
        mlp=Mlp(
            width=f.integer("feed_forward_length"),
            activation=f.one_of("hidden_activation", ACTIVATIONS, "gelu"),
        ),
        windows=tuple(window if each else 0 for each in slides),
        biased=frozenset(),
        norm_biased=False,
        norm_epsilon=f.number("attention.layer_norm_epsilon"),
    )
    size = width // heads
    ropes = {
        "global": Rope(size=size, base=f.number("rope.freq_base", 1.6e5)),
        "local": Rope(size=size, base=f.number("rope.freq_base_swa", 1e4)),
    }
    return EncoderConfig(
        architecture="modern-bert",
        vocabulary=body.vocabulary,
        context_tokens=f.integer("context_length"),
        width=width,
        body=body,
        head=_head(f),
        ropes=ropes,
    )


_PATTERN = "attention.sliding_window_pattern"


def _width_and_heads(f: Fields) -> tuple[int, int]:
    width, heads = f.integer("embedding_length"), f.integer("attention.head_count")
    if width % heads:
        raise f.wrong("attention.head_count", f"a divisor of embedding_length ({width})")
    return width, heads


def _head(f: Fields) -> VectorHead:
    pooling = str(f.table.get(f.prefix + "pooling_type") or 1)
    if pooling not in _POOLING:
        raise f.wrong("pooling_type", "1 (the mean) or 2 (the first token's)")
    return VectorHead(_POOLING[pooling], normalise=True)


def _rows(file: GgufFile, name: str) -> int:
    tensor = file.tensors.get(name)
    if tensor is None:
        raise ModelError(f"{file.path}: tensor {name!r} is missing.")
    return tensor.shape[0]


def _weight_and_bias(ours: str, theirs: str) -> dict[str, str]:
    return {ours: f"{theirs}.weight", f"{ours}.bias": f"{theirs}.bias"}


_BERT = {
    "embed": "token_embd.weight",
    "positions": "position_embd.weight",
    "token_types": "token_types.weight",
    **_weight_and_bias("norm", "token_embd_norm"),
    **weights_and_biases(
        {
            **{m: f"blk.{{}}.attn_{m}" for m in "qkv"},
            "o": "blk.{}.attn_output",
            "attention_norm": "blk.{}.attn_output_norm",
            "up": "blk.{}.ffn_up",
            "down": "blk.{}.ffn_down",
            "mlp_norm": "blk.{}.layer_output_norm",
        }
    ),
}
_NOMIC_BERT = _BERT | weights_and_biases({**dict.fromkeys("qkv", "blk.{}.attn_qkv"), "gate": "blk.{}.ffn_gate"})
_MODERN_BERT = {
    "embed": "token_embd.weight",
    "norm": "token_embd_norm.weight",
    "final_norm": "output_norm.weight",
    **weights_and_biases(
        {
            **dict.fromkeys("qkv", "blk.{}.attn_qkv"),
            "o": "blk.{}.attn_output",
            "attention_norm": "blk.{}.attn_norm",
            **dict.fromkeys(("gate", "up"), "blk.{}.ffn_up"),
            "down": "blk.{}.ffn_down",
            "mlp_norm": "blk.{}.ffn_norm",
        }
    ),
}

NOMIC_BERT_GGUF = GgufArchitecture(_nomic_bert, FileNames(_NOMIC_BERT))
BERT_GGUF = GgufArchitecture(_bert, FileNames(_BERT, ("cls.*",)))
MODERN_BERT_GGUF = GgufArchitecture(_modern_bert, FileNames(_MODERN_BERT, ("cls.*",)))
