"""The whole command on a small model: what it writes is what it rounded, always the same, even when interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import LINEARS, folder_bytes, numbers, write_model, write_text
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from tokenworks.cli import main
from tokenworks.kernels.formats import dequantise
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.rounding import round_to_nearest
from tokenworks.quant.run import Layout, Written, quantise_model
from tokenworks.quant.schemes import SchemeName


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def _quantise(
    model: Path,
    out: Path,
    to: SchemeName = "nvfp4",
    *,
    texts: tuple[Path, ...] = (),
    layout: Layout = "compressed-tensors",
    recipe: str = "standard",
    stop_at: int | None = None,
) -> Written:
    def progress(done: int, total: int, name: str) -> None:
        if stop_at is not None and done == stop_at:
            raise KeyboardInterrupt

    return quantise_model(model, out, read_recipe(recipe, to), layout, texts, progress)


@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt"])
@pytest.mark.parametrize("to", ["nvfp4", "mxfp4", "int8", "fp8"])
def test_the_folder_holds_the_rounded_numbers_bit_for_bit(
    model: Path, tmp_path: Path, to: SchemeName, layout: Layout
) -> None:
    if (to, layout) == ("mxfp4", "modelopt"):
        with pytest.raises(InvalidRequest, match="no MXFP4"):
            _quantise(model, tmp_path / "out", to, layout=layout)
        return
    made = _quantise(model, tmp_path / "out", to, layout=layout)
    assert list(made.quantised.values()) == [to] * LINEARS
    original, found = numbers(model), numbers(made.path)
    for name, before in original.items():
        layer, _, leaf = name.rpartition(".")
        together = next((group for group in (("q", "k", "v"), ("gate", "up")) if leaf in group), (leaf,))
        peak = max(float(np.abs(original[f"{layer}.{each}"]).max()) for each in together) if layer else 0.0
        expected = round_to_nearest(to, before, peak=peak).dequantise() if name in made.quantised else before
        np.testing.assert_array_equal(found[name].view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_of_one_product_share_nvfp4s_scale(model: Path, text: Path, tmp_path: Path, calibrated: bool) -> None:
    """vLLM and others join q, k, v and gate, up, and keep one second-level scale for them."""
    made = _quantise(model, tmp_path / "out", "nvfp4", texts=[text] if calibrated else [])
    tensors = open_checkpoint(made.path).tensors
    for leaves in (("q", "k", "v"), ("gate", "up")):
        scales = [tensors[f"layers.1.{leaf}"].row_scales for leaf in leaves]
        assert len({float(each[0]) for each in scales if each is not None}) == 1


@pytest.mark.parametrize("to", ["nvfp4", "int8"])
def test_weights_that_share_a_tensor_are_written_as_one(to: SchemeName, tmp_path: Path) -> None:
    config = Phi3Config(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "phi3")
    made = _quantise(tmp_path / "phi3", tmp_path / "out", to)
    original, found = numbers(tmp_path / "phi3"), numbers(made.path)
    assert set(found) == set(original)
    assert {"layers.0.k", "layers.1.up"} < made.quantised.keys()
    for name in made.quantised:
        spread = np.abs(found[name] - original[name]).max() / np.abs(original[name]).max()
        assert 0 < spread < (0.2 if to == "nvfp4" else 0.005)


@pytest.mark.parametrize("stop_at", [1, 9, LINEARS - 1])
def test_an_interrupted_run_ends_with_the_same_bytes(model: Path, text: Path, tmp_path: Path, stop_at: int) -> None:
    _quantise(model, tmp_path / "whole", texts=(text,))
    with pytest.raises(KeyboardInterrupt):
        _quantise(model, tmp_path / "out", texts=(text,), stop_at=stop_at)
    assert not (tmp_path / "out").exists()
    resumed_from: list[int] = []
    quantise_model(
        model, tmp_path / "out", read_recipe("standard", "nvfp4"), "compressed-tensors", (text,),
        lambda done, total, name: resumed_from.append(done),
    )  # fmt: skip
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_finished_work_for_another_recipe_is_not_taken_up(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _quantise(model, tmp_path / "out", "int8", stop_at=5)
    made = _quantise(model, tmp_path / "out", "nvfp4")
    assert not made.resumed
    assert set(made.quantised.values()) == {"nvfp4"}


def test_calibration_brings_outputs_nearer_on_text_it_has_not_seen(model: Path, text: Path, tmp_path: Path) -> None:
    from tokenworks.models.text.tokenizer import load_tokenizer
    from tokenworks.quant.measure import compare
    from tokenworks.quant.text import windows

    unseen = windows([write_text(tmp_path / "unseen.txt", 6).read_text()], load_tokenizer(model), count=8, length=128)
    checkpoint = open_checkpoint(model)
    divergences = [
        compare(checkpoint.program(), checkpoint.tensors, open_checkpoint(path).tensors, unseen)
        for path in (
            _quantise(model, tmp_path / "nearest").path,
            _quantise(model, tmp_path / "calibrated", texts=(text,)).path,
            _quantise(model, tmp_path / "int8", "int8").path,
        )
    ]
    nearest, calibrated, int8 = (divergence.kl for divergence in divergences)
    assert int8 < calibrated / 10
    assert calibrated < 0.8 * nearest
    assert divergences[2].top1_agreement > divergences[0].top1_agreement


def test_a_recipe_chooses_per_weight(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('"layers.0.*": keep\n"*.down": fp8\n"layers.*": target\nembed: int8\n')
    made = _quantise(model, tmp_path / "out", "mxfp4", recipe=str(recipe))
    assert made.quantised["embed"] == "int8"
    assert made.quantised["layers.1.down"] == "fp8"
    assert made.quantised["layers.1.up"] == "mxfp4"
    assert len(made.quantised) == 1 + 7
    formats = {name: tensor.format for name, tensor in open_checkpoint(made.path).tensors.items()}
    assert (formats["layers.0.down"], formats["layers.1.down"], formats["embed"]) == ("F32", "F8_E4M3", "I8")


def test_a_quantised_model_can_be_quantised_again(model: Path, tmp_path: Path) -> None:
    once = _quantise(model, tmp_path / "once", "int8")
    twice = _quantise(once.path, tmp_path / "twice", "nvfp4")
    weight = open_checkpoint(once.path).tensors["layers.0.q"]
    expected = round_to_nearest("nvfp4", dequantise(weight)).dequantise()
    np.testing.assert_array_equal(numbers(twice.path)["layers.0.q"], expected)


def test_a_width_that_no_kernel_runs_is_refused_before_any_work(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, head_dim=16,
                         num_attention_heads=4, max_position_embeddings=64)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "odd")
    with pytest.raises(InvalidRequest, match=r"layers\.0\.down has 96 columns; nvfp4 is run in multiples of 64"):
        _quantise(tmp_path / "odd", tmp_path / "out")
    assert _quantise(tmp_path / "odd", tmp_path / "out", "mxfp4").quantised


def test_mistakes_are_told_with_their_cure(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('"layers.*": int3\n')
    for words, message in (
        (["--to", "nvfp4", "--out", str(tmp_path / "full")], "is there already: remove it"),
        (["--to", "nvfp4", "--out", str(tmp_path / "o"), "--calibrate", str(short)], "Give more text"),
        (["--to", "nvfp4", "--out", str(tmp_path / "o"), "--calibrate", str(tmp_path / "none")], "cannot be read"),
        (["--to", "nvfp4", "--out", str(tmp_path / "o"), "--recipe", str(recipe)], "expected one of nvfp4"),
        (["--to", "nvfp4", "--out", str(tmp_path / "o"), "--recipe", "none"], "neither a file nor one of standard"),
        (["--to", "nvfp4", "--out", str(tmp_path / "o"), "--layout", "gguf"], "from a GGUF file only"),
    ):
        assert main(["quantize", str(model), *words]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "o").exists()


def test_the_command_says_what_it_made(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(model), "--to", "mxfp4", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert f"{LINEARS} weights in mxfp4, rounded to nearest" in said.out
    assert f"quantised {LINEARS} of {LINEARS} weights" in said.err
