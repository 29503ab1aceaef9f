"""models, doctor, version, bench: their tables and their JSON."""

import json
import shutil
from pathlib import Path

import pytest
from command import run

from tokenworks import __version__
from tokenworks.cli import version
from tokenworks.cli.terminal import size
from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cpu import _cpu
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.files.packed_store import place_of
from tokenworks.models.sources.catalogue import CATALOGUE


def test_models_list(smollm2: Path) -> None:
    table = run("models", "list").stdout
    assert all(name in table for name in CATALOGUE)
    listed = json.loads(run("models", "list", "--json").stdout)
    (here,) = [model for model in listed["pulled"] if model["source"] == "smollm2-135m"]
    assert here["path"] == str(smollm2) and here["licence"] == "Apache-2.0"
    assert all(Path(text).exists() for text in here["licence_files"]) and here["licence_files"]
    assert here["size_bytes"] >= smollm2.stat().st_size
    assert [model["source"] for model in listed["catalogue"]] == list(CATALOGUE)


def test_packed_weights_are_shown_and_removed_with_their_model(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path))
    shutil.copytree(smollm2.parent, tmp_path / "models" / smollm2.parent.name)
    checkpoint = open_checkpoint(tmp_path / "models" / smollm2.parent.name / smollm2.name)
    place = place_of(checkpoint.path, 1000)
    limits = Limits(1, 1, 1, 1, 16, "int8", 1)
    CpuBackend().compile(checkpoint.program(), checkpoint.tensors, limits, place).keep_packed()
    (here,) = json.loads(run("models", "list", "--json").stdout)["pulled"]
    assert place is not None and here["packed_bytes"] == place.path.stat().st_size
    assert f"packed weights: 1 file, {size(here['packed_bytes'])}" in run("doctor").stdout
    assert "Removed" in run("models", "remove", "smollm2-135m").stdout
    assert not place.path.exists()
    assert "packed weights" not in run("doctor").stdout


def test_version() -> None:
    facts = json.loads(run("version", "--json").stdout)
    assert facts["tokenworks"] == __version__
    assert facts["kernels"].split()[0] in ("scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon")
    assert __version__ in run("--version").stdout


def test_doctor(smollm2: Path) -> None:
    done = run("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["can_serve"]
    assert facts["machine"]["cores_allowed"] >= 1
    assert facts["machine"]["memory_bandwidth_bytes_per_s"] > 1e8
    topics = {finding["topic"] for finding in facts["findings"]}
    assert {"processor", "memory", "gpu", "kernels", "compiler", "models"} <= topics
    assert "Ready: `tokenworks serve`." in run("doctor").stdout


def test_a_home_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "file" / "home"))
    done = run("models", "pull", "smollm2-135m")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "home" in done.stderr and "Traceback" not in done.stderr


def test_bench(smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("bench", str(smollm2), "--repeats", "1", "--at-once", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["model"] == smollm2.stem
    assert {"cpu", "cores", "memory_bytes"} <= set(report["machine"])
    units = {point["name"]: point["unit"] for point in report["points"]}
    assert units == {
        "prefill_512": "tok/s",
        "decode_1": "tok/s",
        "throughput_2": "tok/s",
        "ttft_worst_2": "s",
        "start_to_first_token": "s",
        "memory_peak": "bytes",
    }
    assert all(point["value"] > 0 and point["repeats"] for point in report["points"])
    assert all(name in done.stdout for name in units)


def test_a_set_that_is_there_but_unused_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "isa", lambda: "avx512")
    monkeypatch.setattr(_cpu, "isa_trouble", lambda: "amx: present, but its self-check failed")
    assert version.kernels() == "avx512 (amx: present, but its self-check failed)"
    monkeypatch.setattr(_cpu, "isa_trouble", lambda: None)
    assert version.kernels() == "avx512"
