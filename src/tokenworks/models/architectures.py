"""The table of architectures: who reads the metadata, and what each weight is called in a file.

Canonical names are what the programs use: "embed", "norm", "head", and "layers.N." before the names below. A new
relative of a known architecture is a row here and a reader of its metadata.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenworks.models import gguf_config, hf_config
from tokenworks.models.config import ModelConfig
from tokenworks.models.fields import Fields
from tokenworks.models.gguf import GgufFile

_LAYER = "layers.{}."
_MAPS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class FileNames:
    """What a kind of file calls a model's weights: canonical name -> name there, with {} for the layer's number."""

    names: dict[str, str]
    unused: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that a file may have and the program does not need."""
    norm_offset: float = 0.0
    """Added to RMS norm weights: Gemma's checkpoints store weight - 1."""
    interleaved_rotary: bool = False
    """Rows of q and k lie so that a rotary pair is (2i, 2i + 1) of a head, not (i, i + head_size / 2)."""

    def of(self, canonical: str) -> str:
        if not canonical.startswith("layers."):
            return self.names[canonical]
        _, number, leaf = canonical.split(".", 2)
        return self.names[_LAYER + leaf].format(number)


@dataclass(frozen=True, slots=True)
class HfArchitecture:
    """Of safetensors checkpoints, by config.json's model_type."""

    read: Callable[[Fields], ModelConfig]
    files: FileNames


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """Of GGUF files, by general.architecture."""

    read: Callable[[GgufFile], ModelConfig]
    files: FileNames


def _weights_and_biases(names: dict[str, str]) -> dict[str, str]:
    return {f"{_LAYER}{ours}": f"{theirs}.weight" for ours, theirs in names.items()} | {
        f"{_LAYER}{ours}.bias": f"{theirs}.bias" for ours, theirs in names.items()
    }


def _hf_decoder(norms: dict[str, str]) -> dict[str, str]:
    layer = "model.layers.{}."
    attention = {m: f"{layer}self_attn.{m}_proj" for m in "qkvo"}
    mlp = {m: f"{layer}mlp.{m}_proj" for m in ("gate", "up", "down")}
    norms = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm", "attention_norm": "input_layernorm", **norms}
    return {
        "embed": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
        **_weights_and_biases(attention | mlp),
        **{f"{_LAYER}{ours}": f"{layer}{theirs}.weight" for ours, theirs in norms.items()},
    }


_HF_UNUSED = ("lm_head.weight", "*.rotary_emb.inv_freq")  # a tied head is stored twice; frequencies follow from config
_HF_LLAMA = FileNames(_hf_decoder({"mlp_norm": "post_attention_layernorm"}), _HF_UNUSED)
_HF_GEMMA = FileNames(
    _hf_decoder(
        {
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
    ),
    _HF_UNUSED,
    norm_offset=1.0,
)
_HF_BERT = FileNames(
    {
        "embed": "embeddings.word_embeddings.weight",
        "positions": "embeddings.position_embeddings.weight",
        "token_types": "embeddings.token_type_embeddings.weight",
        "norm": "embeddings.LayerNorm.weight",
        "norm.bias": "embeddings.LayerNorm.bias",
        **_weights_and_biases(
            {
                "q": "encoder.layer.{}.attention.self.query",
                "k": "encoder.layer.{}.attention.self.key",
                "v": "encoder.layer.{}.attention.self.value",
                "o": "encoder.layer.{}.attention.output.dense",
                "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
                "up": "encoder.layer.{}.intermediate.dense",
                "down": "encoder.layer.{}.output.dense",
                "mlp_norm": "encoder.layer.{}.output.LayerNorm",
            }
        ),
    },
    ("embeddings.position_ids", "pooler.dense.*"),
)

_GGUF_NAMES = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    **_weights_and_biases(
        {
            "q": "blk.{}.attn_q",
            "k": "blk.{}.attn_k",
            "v": "blk.{}.attn_v",
            "o": "blk.{}.attn_output",
            "gate": "blk.{}.ffn_gate",
            "up": "blk.{}.ffn_up",
            "down": "blk.{}.ffn_down",
            "q_norm": "blk.{}.attn_q_norm",
            "k_norm": "blk.{}.attn_k_norm",
            "attention_norm": "blk.{}.attn_norm",
            "attention_post_norm": "blk.{}.post_attention_norm",
            "mlp_norm": "blk.{}.ffn_norm",
            "mlp_post_norm": "blk.{}.post_ffw_norm",
        }
    ),
}
_GGUF_UNUSED = ("rope_freqs.weight",)  # the config has it
_GGUF = FileNames(_GGUF_NAMES, _GGUF_UNUSED)

HF_ARCHITECTURES = {
    "llama": HfArchitecture(hf_config.llama, _HF_LLAMA),
    "qwen2": HfArchitecture(hf_config.qwen2, _HF_LLAMA),
    "qwen3": HfArchitecture(hf_config.qwen3, _HF_LLAMA),
    "gemma3_text": HfArchitecture(hf_config.gemma3, _HF_GEMMA),
    "bert": HfArchitecture(hf_config.bert, _HF_BERT),
}
GGUF_ARCHITECTURES = {
    "llama": GgufArchitecture(gguf_config.llama, FileNames(_GGUF_NAMES, _GGUF_UNUSED, interleaved_rotary=True)),
    "qwen2": GgufArchitecture(gguf_config.qwen2, _GGUF),
    "qwen3": GgufArchitecture(gguf_config.qwen3, _GGUF),
    "gemma3": GgufArchitecture(gguf_config.gemma3, _GGUF),
}
