"""What the newer families' files may say otherwise: refused by name, or read all the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_checkpoint, write_gguf
from safetensors.numpy import load_file, save_file
from small_checkpoints import our_logits, write_decoder

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.errors import ModelError

_SENSES = ("model.vision_tower.a", "model.audio_tower.b", "model.embed_vision.c")
REFUSED = [
    ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all': only causal"),
    ("gemma4", {"num_kv_shared_layers": 5}, "num_kv_shared_layers is 5; a number that leaves a layer of each kind"),
    ("gemma4", {"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 12}}}, "one head_dim for all layers of"),
    ("gemma3n", {"altup_active_idx": 1}, "altup_active_idx is 1: layers are expected to compute the first stream"),
    ("gemma3n", {"activation_sparsity_pattern": [0.5, 1.0, 0, 0, 0]}, "5 numbers from 0 on and below 1 was expected"),
    ("falcon-h1", {"mamba_d_head": 9}, r"mamba_d_head is 9; mamba_d_ssm / mamba_n_heads \(10\) was expected"),
    ("falcon-h1", {"ssm_multipliers": [1.0]}, "ssm_multipliers is .*; a list of 5 positive numbers"),
    ("cohere", {"use_qk_norm": True}, "use_qk_norm is True: norms of q and k are not supported"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm is True: norms of q and k are not supported"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm is True: norms of q and k are not supported"),
    ("exaone4", {"layer_types": None, "sliding_window_pattern": "LLX"}, "a positive integer, or letters L and G"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_is_not_supported_is_named(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_decoder(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "begin", "others"),
    [
        ("gemma4", "gemma4", "model.language_model.", _SENSES),
        ("gemma4-experts", "gemma4", "model.language_model.", _SENSES),
        ("gemma3n", "gemma3n", "model.language_model.", _SENSES),
        ("llama4", "llama4", "language_model.model.", ("vision_model.a", "multi_modal_projector.b")),
    ],
)
def test_the_text_part_of_a_model_that_sees_and_hears(
    name: str, kind: str, begin: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    """Its names begin otherwise, its config is a part of a larger one, and other encoders lie beside it."""
    write_decoder(name, tmp_path)
    ids = list(range(3, 60, 4))
    expected = our_logits(tmp_path, ids, CpuBackend())
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    text = json.loads(config.read_text())
    config.write_text(json.dumps({"model_type": kind, "text_config": text, "vision_config": {}}))
    stored = {key.replace("model.", begin, 1): values for key, values in load_file(weights).items()}
    save_file(stored | {f"{of}.weight": np.ones((2, 3), np.float32) for of in others}, weights)
    np.testing.assert_array_equal(our_logits(tmp_path, ids, CpuBackend()), expected)
    assert open_checkpoint(tmp_path).config.vision is None  # type: ignore[union-attr]


def test_older_gemma_4_files_say_heads_once_for_all_layers_that_see_everything(tmp_path: Path) -> None:
    write_decoder("gemma4-experts", tmp_path)
    expected = our_logits(tmp_path, [5, 6, 7], CpuBackend())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("per_layer_config")
    path.write_text(json.dumps(config | {"global_head_dim": 12, "num_global_key_value_heads": 2}))
    np.testing.assert_array_equal(our_logits(tmp_path, [5, 6, 7], CpuBackend()), expected)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cohere", {"extra": {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}}, "norms of q and k are not supp"),
        ("stablelm", {"extra": {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}}, "norms of q and k are not supp"),
        ("glm4", {"keys": {"rope.dimension_sections": [1, 1, 1, 0]}}, "positions along several axes are not supported"),
        ("gemma4", {"keys": {"attention.shared_kv_layers": 6}}, "shared_kv_layers is 6; a number that leaves a layer"),
        ("gemma3n", {"keys": {"altup.active_idx": 1}}, "altup.active_idx is 1: layers are expected"),
    ],
)
def test_what_is_not_supported_in_a_gguf_file_is_named(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_checkpoint(name, tmp_path)
    write_gguf(tmp_path, name, tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(tmp_path / "m.gguf")
