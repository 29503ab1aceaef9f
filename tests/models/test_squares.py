"""FP8 in squares of 128 x 128, as DeepSeek ships its weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import assert_described, our_logits, randomise
from transformers import AutoModelForCausalLM, DeepseekV3Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.shard import Cut, cut_of
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.files.fields import Fields
from tokenworks.models.files.quantised import open_quantised
from tokenworks.models.files.safetensors import open_safetensors
from tokenworks.protocol.errors import ModelError

IDS = np.random.default_rng(3).integers(0, 101, 20).tolist()
CONFIG = DeepseekV3Config(
    vocab_size=101, hidden_size=160, intermediate_size=200, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=3, kv_lora_rank=136, q_lora_rank=40, qk_rope_head_dim=16, qk_nope_head_dim=24, v_head_dim=64,
    first_k_dense_replace=1, moe_intermediate_size=132, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
    n_group=1, topk_group=1, max_position_embeddings=256, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip


def in_squares(weight: torch.Tensor, side: int = 128) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales, and in plain words what they stand for."""
    rows, columns = weight.shape
    codes, whole = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    scales = torch.empty(-(-rows // side), -(-columns // side))
    for down in range(scales.shape[0]):
        for across in range(scales.shape[1]):
            square = slice(down * side, (down + 1) * side), slice(across * side, (across + 1) * side)
            scales[down, across] = weight[square].abs().max() / 448
            codes[square] = (weight[square] / scales[down, across]).to(torch.float8_e4m3fn)
            whole[square] = codes[square].float() * scales[down, across]
    return codes, scales, whole.bfloat16()


def write(folder: Path, **changes: Any) -> None:
    """`folder`/shipped in FP8, and `folder`/whole with the same weights in BF16."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIG)
    randomise(model)
    model.save_pretrained(folder / "whole")
    weights = load_file(folder / "whole/model.safetensors")
    shipped = dict(weights)
    for name in [name for name in weights if name.endswith("_proj.weight") or "kv_a_proj" in name]:
        shipped[name], shipped[f"{name}_scale_inv"], weights[name] = in_squares(weights[name])
    save_file(weights, folder / "whole/model.safetensors", {"format": "pt"})
    (folder / "shipped").mkdir()
    save_file(shipped, folder / "shipped/model.safetensors", {"format": "pt"})
    config = json.loads((folder / "whole/config.json").read_text())
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    (folder / "shipped/config.json").write_text(json.dumps(config | {"quantization_config": quantised | changes}))


def test_a_model_in_squares_is_the_one_it_stands_for(tmp_path: Path) -> None:
    """Some of whose squares are cut off, and whose heads begin in their midst."""
    write(tmp_path)
    shipped, whole = (open_checkpoint(tmp_path / name).tensors for name in ("shipped", "whole"))
    assert shipped["layers.1.experts.2.down"].format == "BF16"
    for name in whole:
        np.testing.assert_array_equal(dequantise(shipped[name]), dequantise(whole[name]), name)
    for axis, name, begin, end in (("rows", "layers.1.experts.2.up", 30, 131), ("columns", "layers.0.down", 100, 199)):
        part = shipped.part(name, axis, begin, end)
        np.testing.assert_array_equal(dequantise(part), dequantise(cut_of(whole[name], Cut("", axis, ((begin, end),)))))
    ours, plain = (our_logits(tmp_path / name, IDS, CpuBackend()) for name in ("shipped", "whole"))
    np.testing.assert_array_equal(ours, plain)


def test_numbers_are_those_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    codes, scales, _ = in_squares(torch.randn(256, 384) * torch.rand(256, 1))
    save_file({"x.weight": codes, "x.weight_scale_inv": scales}, tmp_path / "model.safetensors")
    config = Fields(tmp_path, {"quantization_config": {"quant_method": "fp8"}})
    found = open_quantised(tmp_path, config, open_safetensors(tmp_path))
    assert list(found) == ["x.weight"]
    quantiser = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=[128, 128]))
    theirs = Fp8Dequantize(quantiser)._dequantize_one(codes, scales, torch.bfloat16)
    ours = dequantise(found["x.weight"].tensor())  # type: ignore[union-attr]
    np.testing.assert_array_equal(ours, theirs.float().numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_block_size": [64, 128]}, r"weight_scale_inv' has shape \[2, 2\]; expected \[3, 2\]"),
        ({"weight_block_size": 128}, "weight_block_size is 128; two positive integers"),
        ({"quant_method": "gptq"}, r"'gptq' are not supported, .*DeepSeek \(fp8\)"),
    ],
)
def test_squares_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path / "shipped")


def test_what_stays_in_eight_bits_means_what_the_file_says(tmp_path: Path) -> None:
    """Only where columns are whole runs of 64."""
    write(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "shipped")
    kept, rounded = checkpoint.keeping_fp8().tensors, checkpoint.tensors
    assert_described(kept)
    eight = [name for name in kept if kept[name].format == "F8_64"]
    assert sorted(eight) == ["layers.0.o", "layers.1.o"], "of 192 columns, where others have 136 or 160"
    for name in eight:
        exact, narrow = dequantise(kept[name]), dequantise(rounded[name])
        np.testing.assert_array_equal(torch.from_numpy(exact).bfloat16().float().numpy(), narrow)
    for name in set(kept) - set(eight):
        assert kept[name].format == rounded[name].format
    rows = [kept[name].rows(3, 5) for name in eight[:1]]
    np.testing.assert_array_equal(dequantise(rows[0]), dequantise(kept[eight[0]])[3:8])
    part = kept.part("layers.0.o", "columns", 64, 192)
    np.testing.assert_array_equal(dequantise(part), dequantise(kept["layers.0.o"])[:, 64:])
    assert kept.part("layers.0.attention_norm", "rows", 0, 8) is None, "a view as it is"
