"""A small random decoder on disk, and what the tests of quantisation ask of it."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig

from tokenworks.kernels.formats import dequantise
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.quant.forward import Float32

LINEARS = 2 * 7


def write_model(folder: Path, *, tied: bool = False, vocabulary: int = 128) -> Path:
    """Two layers of Llama in float32, with a tokenizer of one token per character."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=tied,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            else:
                weight.normal_(std=0.7 if "embed" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({chr(number): number for number in range(128)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_text(path: Path, seed: int = 5) -> Path:
    """Words of few letters, often repeated: inputs of layers are correlated, as real text's are."""
    rng = np.random.default_rng(seed)
    words = ["".join(chr(97 + int(c)) for c in rng.integers(0, 26, rng.integers(2, 7))) for _ in range(60)]
    path.write_text(" ".join(words[int(number)] for number in rng.zipf(1.3, 1500) % 60))
    return path


def numbers(path: Path) -> dict[str, Float32]:
    """Every weight of a checkpoint, as float32."""
    return {name: dequantise(tensor) for name, tensor in open_checkpoint(path).tensors.items()}


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
