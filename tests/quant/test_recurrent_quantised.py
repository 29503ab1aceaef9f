"""Models with recurrent states, quantised: what is written back in the file's own order and form is read as it was."""

from pathlib import Path

import numpy as np
import pytest
from small_checkpoints import log_softmax, our_logits, write_decoder
from small_models import numbers

from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.safetensors import open_safetensors
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import quantise_model

IDS = np.random.default_rng(3).integers(0, 101, 37).tolist()


@pytest.mark.parametrize("name", ["mamba2", "nemotron-h", "qwen3-next", "qwen3-5", "granite-4-dense"])
def test_int8_is_near_the_model_and_the_rest_as_it_was(name: str, tmp_path: Path) -> None:
    write_decoder(name, tmp_path / "model")
    recipe = read_recipe("standard", "int8")
    made = quantise_model(tmp_path / "model", tmp_path / "out", recipe, "compressed-tensors", (), lambda *_: None)
    original, found = numbers(tmp_path / "model"), numbers(made.path)
    assert original.keys() == found.keys()
    assert any(weight.startswith("layers.0.") for weight in made.quantised)
    for weight, before in original.items():
        peaks = np.abs(before).max(axis=-1, keepdims=True) if weight in made.quantised else 1e-4
        assert (np.abs(found[weight] - before) <= peaks * 0.005).all(), weight
    stored, written = (open_safetensors(path) for path in (tmp_path / "model", made.path))
    assert {n: t.shape for n, t in written.items() if n in stored} == {
        n: t.shape for n, t in stored.items() if n in written
    }
    before, after = (log_softmax(our_logits(at, IDS, ReferenceBackend())) for at in (tmp_path / "model", made.path))
    worst = np.abs(after - before).max(axis=1)
    assert worst.min() > 1e-5
    assert np.median(worst) < 0.2, "of some tokens the rounding changes an expert"
