"""The model that other projects' quantisers are given, and which of its maps are compared."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

CHECKED = ("model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj")


def model(folder: Path) -> torch.nn.Module:
    """One layer of Llama in bfloat16, loaded from `folder`, where it is written first: exporters want that."""
    torch.manual_seed(1)
    made = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32, max_position_embeddings=64,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.2 * torch.randn_like(weight) if weight.ndim == 2 else 1 + 0.1 * torch.randn_like(weight))
    made.to(torch.bfloat16).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
