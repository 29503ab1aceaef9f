"""Models from a hub, through its own client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenworks.models.sources import hub
from tokenworks.protocol.errors import ModelError


def test_the_hub_in_its_offline_mode(home: Path, tmp_path: Path) -> None:
    """The real client, on a cache laid out as it lays it out itself; in a process of its own, since it reads its
    settings when it is imported."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(revision)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "tokenworks", "models", *words]
        return subprocess.run(line, capture_output=True, text=True, env=environment)

    pulled = command("pull", "hf:someone/tiny")
    assert pulled.returncode == 0, pulled.stderr
    assert (Path(pulled.stdout.strip()) / "model.safetensors").read_bytes() == b"weights"
    listed = json.loads(command("list", "--json").stdout)["pulled"]
    assert [(entry["source"], entry["name"]) for entry in listed] == [("hf:someone/tiny", "someone/tiny")]
    assert command("remove", "hf:someone/tiny").returncode == 0
    assert not snapshot.exists()

    absent = command("pull", "hf:someone/other")
    assert absent.returncode == 2
    assert "is not in the hub's cache" in absent.stderr and "Traceback" not in absent.stderr


def test_a_hub_source_that_is_none() -> None:
    with pytest.raises(ModelError, match="expected hf:ORG/NAME"):
        hub.pull("no slash")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"tokenworks\[hub\]"):
        hub.pull("someone/tiny")
