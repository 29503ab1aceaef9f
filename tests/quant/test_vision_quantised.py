"""Models that see: their decoder is quantised, what they see with stays as it lies in their files."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_checkpoints import log_softmax
from vision_checkpoints import FAMILIES, drawing, our_vision_logits, prompt_of, write_vision_model

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import Layout, quantise_model

SEES = ("vision", "visual", "connector", "projector")


@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoder_alone_is_quantised(family: str, layout: Layout, tmp_path: Path) -> None:
    source = tmp_path / "whole"
    source.mkdir()
    write_vision_model(family, source)
    made = quantise_model(source, tmp_path / "made", read_recipe("standard", "fp8"), layout, (), lambda *_: None)
    assert {name.split(".")[0] for name in made.quantised} == {"layers"}
    before, after = load_file(source / "model.safetensors"), _raw(made.path / "model.safetensors")
    seeing = [name for name in before if any(part in name for part in SEES)]
    assert len(seeing) > 20
    for name in seeing:
        assert after[name] == before[name].tobytes(), name
    texts = {name for name in before if name not in seeing and name.endswith("_proj.weight")}
    assert texts <= after.keys() and all(f"{name}_scale" in after for name in texts)
    ids, pictures = prompt_of(source, [drawing(24, 24), drawing(37, 100)])
    whole = log_softmax(our_vision_logits(source, ids, pictures, ReferenceBackend()))
    slow, fast = (
        log_softmax(our_vision_logits(made.path, ids, pictures, b)) for b in (ReferenceBackend(), CpuBackend())
    )
    np.testing.assert_allclose(fast, slow, atol=2e-3, rtol=0)
    assert 0 < (np.exp(whole) * (whole - slow)).sum(axis=-1).mean() < 0.05


def _raw(path: Path) -> dict[str, bytes]:
    """Bytes of every tensor; NumPy has no 8-bit floats."""
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    return {
        name: whole[end + about["data_offsets"][0] : end + about["data_offsets"][1]]
        for name, about in header.items()
        if name != "__metadata__"
    }


def test_modules_that_stay_are_named(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    write_vision_model("idefics3", tmp_path / "whole")
    recipe = read_recipe("standard", "fp8")
    made = quantise_model(tmp_path / "whole", tmp_path / "made", recipe, "compressed-tensors", (), lambda *_: None)
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert "model.vision_model.encoder.layers.1.mlp.fc2" in said["ignore"]
    assert "model.text_model.layers.0.self_attn.q_proj" in said["config_groups"]["group_0"]["targets"]


def test_calibration_is_on_texts(tmp_path: Path) -> None:
    """Whose positions are the same along all of a picture's axes."""
    (tmp_path / "whole").mkdir()
    write_vision_model("qwen3_vl", tmp_path / "whole")
    text = tmp_path / "text.txt"
    text.write_text("a few words, again and again; " * 20)
    recipe = read_recipe("standard", "fp8")
    made = quantise_model(tmp_path / "whole", tmp_path / "made", recipe, "compressed-tensors", [text], lambda *_: None)
    assert made.calibration_tokens
    assert open_checkpoint(made.path).tensors["layers.0.down"].format == "F8_E4M3"
