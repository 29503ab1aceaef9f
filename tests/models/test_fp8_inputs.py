"""Checkpoints that say whether activations are rounded to FP8 too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenworks.models.files.fields import Fields
from tokenworks.models.files.quantised import PackedTensor, open_quantised
from tokenworks.models.files.safetensors import open_safetensors

BY_TOKEN = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token", "symmetric": True}


def groups(*inputs: dict[str, Any] | None) -> dict[str, Any]:
    each = {f"group_{n}": {"targets": ["Linear"], "input_activations": one} for n, one in enumerate(inputs)}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": each}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (groups(BY_TOKEN), True),
        (groups(BY_TOKEN, BY_TOKEN), True),
        (groups(BY_TOKEN, None), False),
        (groups(BY_TOKEN | {"dynamic": False}), False),
        (groups(BY_TOKEN | {"strategy": "tensor"}), False),
        (groups(BY_TOKEN | {"type": "int"}), False),
        (groups(), False),
        ({"quant_method": "modelopt"}, False),
    ],
)
def test_only_activations_by_token_are_rounded_as_ours_would_be(
    config: dict[str, Any], said: bool, tmp_path: Path
) -> None:
    weights = {
        "x.weight": torch.ones(16, 32).to(torch.float8_e4m3fn),
        "x.weight_scale": torch.ones(16, 1),
        "y.weight": torch.ones(16, 32, dtype=torch.int8),
        "y.weight_scale": torch.ones(16, 1),
    }
    save_file(weights, tmp_path / "model.safetensors")
    fields = Fields(tmp_path, {"quantization_config": config})
    found = open_quantised(tmp_path, fields, open_safetensors(tmp_path))
    of_x, of_y = found["x.weight"], found["y.weight"]
    assert isinstance(of_x, PackedTensor) and isinstance(of_y, PackedTensor)
    assert of_x.fp8_inputs is of_x.tensor().fp8_inputs is of_x.rows(2, 3).tensor().fp8_inputs is said
    assert not of_y.fp8_inputs and not of_y.tensor().fp8_inputs
