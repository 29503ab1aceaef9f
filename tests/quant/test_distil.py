"""An adapter brings a quantised model nearer to its original on text it has not seen, and what is written is it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import LINEARS, folder_bytes, numbers, write_model
from transformers import AutoModelForCausalLM, CohereConfig, Phi3Config

from tokenworks.cli import main
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.adapters import modules_of, names_of, read_adapter
from tokenworks.models.checkpoint import Checkpoint, open_checkpoint
from tokenworks.models.decoder import decoder_shapes
from tokenworks.models.text.tokenizer import load_tokenizer
from tokenworks.protocol.errors import FactoryError, InvalidRequest
from tokenworks.quant import distil_run
from tokenworks.quant.checkpoints.peft import write_peft
from tokenworks.quant.distil_run import distil_model
from tokenworks.quant.forward import Float32
from tokenworks.quant.measure import compare
from tokenworks.quant.recipe import read_recipe
from tokenworks.quant.run import quantise_model
from tokenworks.quant.text import windows

WINDOWS, LENGTH = 160, 64


@pytest.fixture(scope="module", autouse=True)
def little_text() -> Iterator[None]:
    patch, threads = pytest.MonkeyPatch(), torch.get_num_threads()
    torch.set_num_threads(1)  # its threads wait for each other longer than such small layers take
    patch.setattr(distil_run, "WINDOWS", WINDOWS)
    patch.setattr(distil_run, "TOKENS", LENGTH)
    yield
    patch.undo()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def quantised(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "out"
    return quantise_model(model, out, read_recipe("standard", "nvfp4"), "compressed-tensors", [], quiet).path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """To train and to measure on: of the same words each, drawn anew."""
    letters = np.random.default_rng(1)
    words = ["".join(chr(97 + int(c)) for c in letters.integers(0, 26, letters.integers(2, 7))) for _ in range(300)]
    folder = tmp_path_factory.mktemp("texts")
    for seed in (6, 7):
        drawn = np.random.default_rng(seed).zipf(1.2, 12000) % 300
        (folder / f"{seed}.txt").write_text(" ".join(words[int(number)] for number in drawn))
    return folder / "6.txt", folder / "7.txt"


@pytest.fixture(scope="module")
def made(model: Path, quantised: Path, texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil_model(model, quantised, [texts[0]], tmp_path_factory.mktemp("made") / "out", 4, quiet).path


def quiet(*_: object) -> None: ...


def with_adapter(base: Checkpoint, folder: Path) -> dict[str, Tensor]:
    """The base's weights with what the adapter does to them."""
    weights = dict(base.tensors)
    for name, share in read_adapter(folder, base).items():
        sides = dequantise(share.up) @ dequantise(share.down)
        changed: Float32 = dequantise(weights[name]) + np.float32(share.scale) * sides
        weights[name] = Tensor(name, "F32", changed.shape, changed.view(np.uint8).reshape(-1))
    return weights


def test_kl_falls_on_unseen_text(model: Path, quantised: Path, texts: tuple[Path, Path], made: Path) -> None:
    original, base = open_checkpoint(model), open_checkpoint(quantised)
    unseen = windows([texts[1].read_text()], load_tokenizer(model), count=16, length=LENGTH)
    without, with_it = (
        compare(original.program(), original.tensors, weights, unseen).kl
        for weights in (base.tensors, with_adapter(base, made))
    )
    assert with_it < 0.7 * without
    assert len(read_adapter(made, base)) == LINEARS


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [0, 27])
def test_an_interrupted_run_ends_with_the_same_bytes(
    model: Path, quantised: Path, texts: tuple[Path, Path], made: Path, tmp_path: Path, stop_at: int
) -> None:
    ran: list[int] = []

    def progress(title: str, done: int, total: int, what: str) -> None:
        ran.append(done if title == "training" else -1)
        if ran[-1] == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        distil_model(model, quantised, [texts[0]], tmp_path / "out", 4, progress)
    assert not (tmp_path / "out").exists()
    stop_at, begin = -2, len(ran)
    assert folder_bytes(distil_model(model, quantised, [texts[0]], tmp_path / "out", 4, progress).path) == folder_bytes(
        made
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert ran[begin:][0] in (-1, 20)


@pytest.mark.parametrize(
    "config",
    [
        Phi3Config(
            vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
        ),
        CohereConfig(
            vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        ),
    ],
    ids=["maps stored as one", "rotary pairs side by side"],
)  # fmt: skip
def test_what_is_written_reads_as_the_same_change(config: Phi3Config | CohereConfig, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    base = open_checkpoint(tmp_path)
    names, shapes = names_of(base), decoder_shapes(base.config)  # type: ignore[arg-type]
    modules = {name: each for name, each in modules_of(names, shapes).items() if each.weights[0].startswith("layers.")}
    rng = np.random.default_rng(3)
    terms = {
        weight: tuple(
            rng.standard_normal(shape).astype(np.float32) for shape in ((3, shapes[weight][1]), (shapes[weight][0], 3))
        )
        for module in modules.values()
        for weight in module.weights
    }
    (tmp_path / "adapter").mkdir()
    write_peft(tmp_path / "adapter", base, names, modules, terms)
    read = read_adapter(tmp_path / "adapter", base)
    assert read.keys() == terms.keys()
    for name, (down, up) in terms.items():
        change = read[name].scale * dequantise(read[name].up) @ dequantise(read[name].down)
        np.testing.assert_allclose(change, up @ down, rtol=1e-4, atol=1e-4)


def test_the_command_says_what_it_brought(
    model: Path, quantised: Path, texts: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    assert main(["distil", str(model), str(quantised), "--on", str(texts[0]), "--out", str(out), "--rank", "2"]) == 0
    said = capsys.readouterr()
    before, after = map(float, re.search(r"kept back: (\S+) nats without it, (\S+) with it\.\n", said.out).groups())  # type: ignore[union-attr]
    assert after < before
    assert f"tokenworks serve {quantised} --adapter distilled={out}" in said.out
    assert "training, 1 of 38: \n" in said.err


def test_mistakes_are_told_with_their_cure(
    model: Path, quantised: Path, texts: tuple[Path, Path], minilm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = write_model(tmp_path / "other", vocabulary=130)
    with pytest.raises(InvalidRequest, match=r"not .* in fewer bits: embed is \[130, 64\] there, \[128, 64\]"):
        distil_model(model, other, [texts[0]], out, 4, quiet)
    with pytest.raises(InvalidRequest, match="only models that write text"):
        distil_model(minilm, minilm, [texts[0]], out, 4, quiet)
    (tmp_path / "short.txt").write_text("a word " * 100)
    with pytest.raises(InvalidRequest, match="25 are needed"):
        distil_model(model, quantised, [tmp_path / "short.txt"], out, 4, quiet)
    with pytest.raises(FactoryError, match="brings nothing"):
        distil_model(model, model, [texts[0]], out, 4, quiet)
    assert not out.exists() and not (tmp_path / "out.part").exists()
    assert numbers(model).keys() == numbers(quantised).keys()
