"""Models of every kind, quantised: what is written back in the file's own order and form is read as it was."""

from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import log_softmax, our_logits, write_decoder
from small_models import numbers

from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.files.safetensors import open_safetensors
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import quantise_model
from tokenworks.quant.served import Served

IDS = np.random.default_rng(3).integers(0, 101, 37).tolist()


@pytest.mark.parametrize(
    "name",
    [
        "mamba2",
        "nemotron-h",
        "qwen3-next",
        "qwen3-5",
        "granite-4-dense",
        "deepseek-v3",
        "gemma3n",
        "gemma4",
        "gemma4-experts",
        "falcon-h1",
        "lfm2-moe",
        "gpt-neox",
        "glm4",
        "cohere2",
        "ernie4-5-moe",
        "hunyuan-moe",
        "llama4",
    ],
)
def test_fp8_is_near_the_model_and_the_rest_as_it_was(name: str, tmp_path: Path) -> None:
    write_decoder(name, tmp_path / "model")
    recipe = read_recipe("standard", "fp8")
    made = quantise_model(tmp_path / "model", tmp_path / "out", recipe, "compressed-tensors", (), lambda *_: None)
    original, found = numbers(tmp_path / "model"), numbers(made.path)
    assert original.keys() == found.keys()
    assert any(weight.startswith("layers.0.") for weight in made.quantised)
    for weight, before in original.items():
        peaks = np.abs(before).max(axis=-1, keepdims=True) if weight in made.quantised else 1e-4
        assert (np.abs(found[weight] - before) <= peaks * 0.04).all(), weight
    stored, written = (open_safetensors(path) for path in (tmp_path / "model", made.path))
    assert {n: t.shape for n, t in written.items() if n in stored} == {
        n: t.shape for n, t in stored.items() if n in written
    }
    before, after = (log_softmax(our_logits(at, IDS, ReferenceBackend())) for at in (tmp_path / "model", made.path))
    worst = np.abs(after - before).max(axis=1)
    assert worst.min() > 1e-5
    assert np.median(worst) < 1.0, "of some tokens the rounding changes an expert"


@pytest.mark.parametrize("name", ["mamba2", "nemotron-h"])
def test_windows_as_served_are_those_of_whole_prompts(name: str, tmp_path: Path) -> None:
    """What `tokenworks audit` measures."""
    write_decoder(name, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    served = Served(ReferenceBackend(), checkpoint.program(), checkpoint.tensors, "float32", 1)
    windows = np.array(IDS[:36], np.int32).reshape(3, 12)
    [(_, rows)] = served.logits(windows, 0)
    for window, got in zip(windows, rows.reshape(3, 11, -1), strict=True):
        np.testing.assert_allclose(got, our_logits(tmp_path, window.tolist(), ReferenceBackend())[:-1], atol=1e-5)
    made = served.greedy(windows, 5)
    for window, tokens in zip(windows.tolist(), made.tolist(), strict=True):
        logits = our_logits(tmp_path, window + tokens, ReferenceBackend())
        assert logits[11:-1].argmax(axis=1).tolist() == tokens
