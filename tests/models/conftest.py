"""The package index that tests of model sources run against."""

import os
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from package_index import Handler, Index


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
