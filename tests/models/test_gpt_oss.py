"""gpt-oss as it is shipped: experts as blocks of MXFP4, dequantised by transformers' own function for comparison."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import log_softmax, our_logits, reference_logits, reference_model
from transformers import AutoModelForCausalLM, GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint

EXPERTS, WIDTH, INNER = 5, 64, 96
CONFIG = GptOssConfig(
    vocab_size=101, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, num_local_experts=EXPERTS, num_experts_per_tok=2, sliding_window=5,
    max_position_embeddings=256,
)  # fmt: skip


def _write(folder: Path) -> None:
    """`folder`/float as transformers writes it, and `folder`/shipped with the same experts in blocks."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIG)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.5 if weight.ndim == 1 or "embed" in name else 0.15)
    model.save_pretrained(folder / "float")
    weights = load_file(folder / "float/model.safetensors")
    shipped = {name: value for name, value in weights.items() if not name.endswith(("gate_up_proj", "down_proj"))}
    for name in sorted(weights.keys() - shipped.keys()):  # in one order, so that the numbers are always the same
        rows, columns = (2 * INNER, WIDTH) if "gate_up" in name else (WIDTH, INNER)
        blocks = torch.randint(0, 256, (EXPERTS, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(122, 125, (EXPERTS, rows, columns // 32), dtype=torch.uint8)
        shipped |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        weights[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
        assert weights[name].shape == (EXPERTS, columns, rows)
    save_file(weights, folder / "float/model.safetensors", {"format": "pt"})
    (folder / "shipped").mkdir()
    save_file(shipped, folder / "shipped/model.safetensors", {"format": "pt"})
    config = json.loads((folder / "float/config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "shipped/config.json").write_text(json.dumps(config))


def test_blocks_are_the_numbers_that_transformers_makes_of_them(tmp_path: Path) -> None:
    _write(tmp_path)
    ids = np.random.default_rng(2).integers(0, 101, 41).tolist()
    theirs = log_softmax(reference_logits(reference_model(tmp_path / "float"), ids))
    assert np.ptp(theirs, axis=-1).min() > 1
    np.testing.assert_allclose(
        log_softmax(our_logits(tmp_path / "shipped", ids, ReferenceBackend())), theirs, atol=1e-4, rtol=0
    )
    # On the CPU backend, weights in blocks mean inputs of 8 bits.
    ours = log_softmax(our_logits(tmp_path / "shipped", ids, CpuBackend()))
    kl = (np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean()
    assert kl < 0.002
    tensor = open_checkpoint(tmp_path / "shipped").tensors["layers.1.experts.3.up"]
    assert (tensor.format, tensor.shape) == ("MXFP4", (INNER, WIDTH))
