"""`tokenworks audit` as a user meets it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import TOKENWORKS, WITHIN_S, run

sys.path.append(str(Path(__file__).parents[1] / "quant"))
from small_models import write_model, write_text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"))


def test_audit_of_a_deployment(model: Path, minilm: Path, tmp_path: Path) -> None:
    text, objects, page = write_text(tmp_path / "text.txt"), tmp_path / "audit.json", tmp_path / "audit.html"
    factory = tmp_path / "factory.yaml"
    factory.write_text(
        f"models:\n  - source: {model}\n  - source: {model}\n    name: again\n  - source: {minilm}\n"
        "engine:\n  threads: 1\n"
    )
    options = ("--text", str(text), "--tokens", "512", "--json", str(objects), "--html", str(page))
    done = run("audit", str(factory), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(objects.read_text())
    assert {each["precision"] for each in found} == {"stored", "int8", "fp8", "mxfp4", "nvfp4"}
    best, other = (each for each in found if each["recommended"])
    assert f"* {best['precision']}: {best['reason']}" in done.stdout
    assert best["model"] == model.name and other["model"] == "again" and found[0]["tokens"] == 2 * 255
    assert {name: each for name, each in found[0].items() if name in ("bytes", "perplexity", "kl", "tasks")} == {
        name: each for name, each in found[5].items() if name in ("bytes", "perplexity", "kl", "tasks")
    }
    assert "makes vectors" in done.stderr
    html = page.read_text()
    assert html.startswith("<!doctype html>") and str(text) in html and f"tokenworks audit {factory}" in html
    assert f"{model.name}, 1 of 21" in done.stderr


def test_what_cannot_be_audited(model: Path, minilm: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    for words, said in (
        ((str(model), "--text", str(tmp_path / "short.txt")), "Give more text"),
        ((str(model), "--json", str(tmp_path / "none" / "x.json")), "no such folder"),
        ((str(minilm),), "makes vectors"),
        ((str(model), "--html", str(tmp_path)), "is a folder"),
        ((str(model), "--tokens", "many"), "a whole number from 256, got 'many'"),
        ((str(model), "--max-loss", "nan"), "a number of percent"),
        ((str(tmp_path / "none.gguf"),), "none.gguf"),
        ((str(tmp_path / "none.yaml"),), "none.yaml"),
        ((str(tmp_path / "short.txt"),), "short.txt"),
    ):
        done = run("audit", *words)
        assert done.returncode == 2 and said in done.stderr


def test_ctrl_c(smollm2: Path) -> None:
    command = [*TOKENWORKS, "audit", str(smollm2)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # the first step has begun
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
