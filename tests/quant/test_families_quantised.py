"""Every family quantised to every format: the backends agree on the same weights, and the model is nearly the same."""

import copy
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from small_checkpoints import DECODERS, log_softmax, our_logits, write_decoder
from small_models import numbers

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import quantise_model

IDS = np.random.default_rng(4).integers(0, 101, 24).tolist()
FAMILIES = {config.model_type: name for name, config in reversed(DECODERS.items())} | {"": "nemotron-3"}
"""One model for each model_type, and the one that has kinds of layers of its own."""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "v_head_dim": 64,
    "mamba_d_head": 16,
    "mamba_d_ssm": 128,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "linear_value_head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
"""Columns that blocks of 64 divide."""
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gemma3n": {"intermediate_size": [128] * 5, "hidden_size_per_layer_input": 64, "laurel_rank": 64},
    "gemma4": {"hidden_size_per_layer_input": 64},
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "llama4": {"intermediate_size_mlp": 128},
    "mamba2": {"num_heads": 8, "n_groups": 2},
}


def _config_of(name: str) -> Any:
    config = copy.deepcopy(DECODERS[name])
    config.tie_word_embeddings = False  # else the last token is by far the likeliest
    for key, value in (SIZES | OWN_SIZES.get(name, {})).items():
        if vars(config).get(key) is not None:
            setattr(config, key, value)
    return config


FAR = {"int8": 0.01, "fp8": 0.1, "nvfp4": 0.6, "mxfp4": 1.5}
"""The most mean divergence (nats) from the model in float32. Random weights forgive less than trained ones do: most
families are a tenth of it away."""


@pytest.mark.parametrize("name", FAMILIES.values())
def test_quantised_models_are_nearly_the_same_on_both_backends(name: str, tmp_path: Path) -> None:
    write_decoder(name, tmp_path / "whole", config=_config_of(name))
    whole = log_softmax(our_logits(tmp_path / "whole", IDS, ReferenceBackend()))
    assert np.ptp(whole, axis=-1).min() > 1
    for scheme, far in FAR.items():
        recipe = read_recipe("standard", scheme)  # type: ignore[arg-type]
        made = quantise_model(tmp_path / "whole", tmp_path / scheme, recipe, "compressed-tensors", (), lambda *_: None)
        slow, fast = (log_softmax(our_logits(made.path, IDS, b)) for b in (ReferenceBackend(), CpuBackend()))
        assert 0 < _divergences(whole, slow).mean() < far, scheme
        # With fp8 both multiply floats; else the inputs of products are rounded to 8 bits here, which where experts
        # are chosen may choose another one.
        if scheme == "fp8":
            np.testing.assert_allclose(fast, slow, atol=1e-3, rtol=0)
        else:
            between = _divergences(slow, fast)
            assert np.median(between) < 0.005, scheme
            assert between.mean() < 0.1, scheme


@pytest.mark.parametrize("name", ["phi3", "deepseek-v3", "qwen3-next", "granite-4", "glm4-moe"])
def test_a_gguf_file_becomes_what_its_checkpoint_becomes(name: str, tmp_path: Path) -> None:
    """Whose tensors hold several weights, all experts, or rows in an order of their own."""
    config = _config_of(name)
    for key, value in (gguf_files.CASES[name].changes or {}).items():
        setattr(config, key, value)
    write_decoder(name, tmp_path / "whole", config=config)
    gguf_files.write_gguf(tmp_path / "whole", name, tmp_path / "m.gguf", config=config)
    recipe, made = read_recipe("standard", "mxfp4"), []
    for source, layout in ((tmp_path / "whole", "compressed-tensors"), (tmp_path / "m.gguf", "gguf")):
        made.append(
            quantise_model(source, tmp_path / layout, recipe, layout, (), lambda *_: None)  # type: ignore[arg-type]
        )
    assert made[0].quantised == made[1].quantised
    folder, file = (numbers(each.path) for each in made)
    for weight in made[0].quantised:
        np.testing.assert_array_equal(file[weight], folder[weight], weight)


def _divergences(of: Any, by: Any) -> Any:
    """Kullback and Leibler's, of each token's distribution."""
    return (np.exp(of) * (of - by)).sum(axis=-1)
