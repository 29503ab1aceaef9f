"""What a folder needs beside weights, from a GGUF file: config.json, and the tokenizer's files."""

import json
from pathlib import Path
from typing import Any

from tokenworks.models.config import DecoderConfig, ModelConfig
from tokenworks.models.files.gguf import GgufFile
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.rope import Rope
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.errors import ModelError

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}


def config_of_gguf(file: GgufFile, config: ModelConfig, model_type: str) -> dict[str, Any]:
    """config.json with the keys that models/families/ and transformers read."""
    if not isinstance(config, DecoderConfig):
        raise ModelError(f"{file.path}: an encoder in a GGUF file cannot be written as a folder.")
    attention, mlp = config.layers[0].mixer, config.layers[0].feed_forward
    if model_type not in _CLASSES or not isinstance(attention, Attention) or not isinstance(mlp, Mlp):
        raise ModelError(f"{file.path}: a {model_type} model in a GGUF file cannot be written as a folder.")
    table: dict[str, Any] = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": mlp.width,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "max_position_embeddings": config.context_tokens,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_head,
        "hidden_act": _ACTIVATIONS[mlp.activation],
        "dtype": "bfloat16",
    }
    if model_type == "llama":
        table |= {"attention_bias": "q" in attention.biased, "mlp_bias": "gate" in mlp.biased}
    if model_type in ("qwen3", "gemma3_text"):
        table["attention_bias"] = "q" in attention.biased
    ropes = {name: _rope(file, rope) for name, rope in config.ropes.items()}
    if model_type == "gemma3_text":
        windows = [layer.mixer.window for layer in config.layers if isinstance(layer.mixer, Attention)]
        table |= {
            "hidden_activation": table.pop("hidden_act"),
            "query_pre_attn_scalar": attention.scale**-2,
            "sliding_window": max(windows),
            "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
            "rope_parameters": {"full_attention": ropes["global"], "sliding_attention": ropes["local"]},
            "final_logit_softcapping": config.logit_softcap or None,
        }
    else:
        table["rope_parameters"] = ropes["global"]
    numbers = {role: file.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "padding")}
    ends = sorted(load_tokenizer(file.path).eos_token_ids)
    table |= {"bos_token_id": numbers["bos"], "eos_token_id": ends, "pad_token_id": numbers["padding"]}
    return table


def _rope(file: GgufFile, rope: Rope) -> dict[str, Any]:
    if rope.divisors or rope.stretched is not None:
        raise ModelError(
            f"{file.path}: its rotary frequencies are not those of a base and a factor, and would be lost. "
            "Quantise the model's safetensors checkpoint, or write --layout gguf."
        )
    if rope.factor != 1.0:
        return {"rope_type": "linear", "rope_theta": rope.base, "factor": rope.factor}
    return {"rope_type": "default", "rope_theta": rope.base}


def write_gguf_tokenizer(path: Path, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja of a GGUF file's vocabulary."""
    built = load_tokenizer(path)
    built.tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": built.bos_token or None,
        "eos_token": built.eos_token or None,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if built.chat_template:
        (folder / "chat_template.jinja").write_text(built.chat_template, "utf-8")
