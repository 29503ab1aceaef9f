"""What quantize does to a layer that guesses further tokens: it writes it as it was."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from small_models import numbers, write_model
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen3_5TextConfig

from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.config import DecoderConfig
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import quantise_model

WIDTH = 64


def test_a_layer_that_guesses_is_kept(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")  # its tokenizer
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(
        DeepseekV3Config(
            vocab_size=128, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, kv_lora_rank=32, q_lora_rank=None, qk_rope_head_dim=16, qk_nope_head_dim=16,
            v_head_dim=32, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
            moe_intermediate_size=32, n_shared_experts=1, max_position_embeddings=256,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {f"model.layers.1.{norm}.weight": torch.randn(WIDTH) for norm in ("enorm", "hnorm", "shared_head.norm")}
    weights["model.layers.1.eh_proj.weight"] = torch.randn(WIDTH, 2 * WIDTH)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    table = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1, "num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(table))
    recipe = read_recipe("standard", "int8")
    made = quantise_model(folder, tmp_path / "out", recipe, "compressed-tensors", (), lambda *_: None)
    config = open_checkpoint(made.path).config
    assert isinstance(config, DecoderConfig)
    assert config.multi_token is not None
    before, after = numbers(folder), numbers(made.path)
    own = [name for name in before if name.startswith("layers.1.")]
    assert len(own) > 20
    for name in own:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert (after["layers.0.down"] != before["layers.0.down"]).any()


def test_one_that_files_number_apart_keeps_its_names(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")  # its tokenizer
    torch.manual_seed(4)
    config = Qwen3_5TextConfig(
        vocab_size=128, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, full_attention_interval=2, linear_num_value_heads=2,
        linear_num_key_heads=2, linear_key_head_dim=32, linear_value_head_dim=32, max_position_embeddings=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    own = {name.replace("model.layers.1.", "mtp.layers.0."): w for name, w in weights.items() if "layers.1." in name}
    own |= {
        f"mtp.{norm}.weight": torch.randn(WIDTH) for norm in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    }
    own["mtp.fc.weight"] = torch.randn(WIDTH, 2 * WIDTH)
    save_file({name: w.clone() for name, w in (weights | own).items()}, folder / "model.safetensors", {"format": "pt"})
    recipe = read_recipe("standard", "int8")
    made = quantise_model(folder, tmp_path / "out", recipe, "compressed-tensors", (), lambda *_: None)
    written = load_file(made.path / "model.safetensors")
    assert {name for name in written if name.startswith("mtp.")} == set(own)
    before, after = numbers(folder), numbers(made.path)
    for name in before:
        if name.startswith("layers.2."):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert (after["layers.0.down"] != before["layers.0.down"]).any()
