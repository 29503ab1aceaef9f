"""Latent attention from checkpoints whose weights are quantised or have more layers than the model."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import log_softmax, our_logits, reference_logits, reference_model
from transformers import AutoModelForCausalLM, DeepseekV3Config

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint

IDS = np.random.default_rng(3).integers(0, 101, 37).tolist()
CONFIG = DeepseekV3Config(
    vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=3, kv_lora_rank=32, q_lora_rank=None, qk_rope_head_dim=16, qk_nope_head_dim=24, v_head_dim=64,
    first_k_dense_replace=2, max_position_embeddings=256, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def _write(folder: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIG)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.5 if weight.ndim == 1 or "embed" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(folder)


def test_int8_rows_of_the_heads_projections(tmp_path: Path) -> None:
    """K's half is transposed, which rows with scales of their own do not survive: it becomes float16."""
    _write(tmp_path / "int8")
    _write(tmp_path / "float")
    weights = load_file(tmp_path / "int8/model.safetensors")
    exact = dict(weights)
    for name in [name for name in weights if name.endswith("_proj.weight") or "kv_a_proj" in name]:
        rows = weights[name]
        scale = rows.abs().amax(dim=1, keepdim=True) / 127
        codes = (rows / scale).round().to(torch.int8)
        weights |= {name: codes, f"{name}_scale": scale}
        exact[name] = codes.float() * scale
    save_file(weights, tmp_path / "int8/model.safetensors", {"format": "pt"})
    save_file(exact, tmp_path / "float/model.safetensors", {"format": "pt"})
    tensors = open_checkpoint(tmp_path / "int8").tensors
    k_up, v_up = tensors["layers.1.heads.2.k_up"], tensors["layers.1.heads.2.v_up"]
    assert (k_up.format, v_up.format) == ("F16", "I8")
    kv_b = exact["model.layers.1.self_attn.kv_b_proj.weight"].reshape(3, 88, 32)[2].numpy()
    np.testing.assert_array_equal(dequantise(k_up), kv_b[:24].T.astype(np.float16))
    np.testing.assert_allclose(dequantise(v_up), kv_b[24:], rtol=1e-6)
    theirs = log_softmax(reference_logits(reference_model(tmp_path / "float"), IDS))
    assert np.ptp(theirs, axis=-1).min() > 1
    # What remains is the rounding of K's half to float16, and on the CPU backend of inputs to 8 bits.
    for backend, bound in ((ReferenceBackend(), 0.005), (CpuBackend(), 0.2)):
        ours = log_softmax(our_logits(tmp_path / "int8", IDS, backend))
        np.testing.assert_allclose(ours, theirs, atol=bound, rtol=0)


def test_layers_behind_the_last_that_the_config_does_not_name_are_left_out(tmp_path: Path) -> None:
    _write(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(table | {"num_nextn_predict_layers": 0}))
    before = our_logits(tmp_path, IDS, CpuBackend())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.2.eh_proj.weight"] = torch.ones(64, 128)
    weights["model.layers.2.input_layernorm.weight"] = torch.ones(64)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(our_logits(tmp_path, IDS, CpuBackend()), before)
