"""The documentation is true: made pages are fresh, links lead somewhere, and every command in it is run.

A comment above each code block says how it is run:
    run                  in a data directory of its own, where the default model has been pulled
    run: serve           the command must become ready, answer, and end on Ctrl-C; ports are changed to free ones
    run: client          against a factory as `tokenworks serve` starts it
    run: client; COMMAND against one that this command starts, beside speech.wav
    run: not here, WHY
    file: NAME           is written to the folder that the page's other blocks run in
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tokenworks.config import data_directory
from tokenworks.config_file import parse
from tokenworks.protocol.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>sh|python|yaml)\n(?P<text>.*?)```", re.DOTALL)
WITHIN_S = 120


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks() -> list[Block]:
    found = []
    for page in PAGES:
        if page.name == "architecture.md":  # its code shows what rooms offer each other: nothing to run
            continue
        written = page.read_text()
        for match in BLOCK.finditer(written):
            line = written.count("\n", 0, match.start("text")) + 1
            found.append(Block(page.name, line, match["mark"] or "", match["language"], match["text"]))
    return found


BLOCKS = _blocks()


def _marked(mark: str) -> list[Block]:
    return [block for block in BLOCKS if block.mark.split(",")[0].split(";")[0] == mark]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_made_pages_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # the generator sets its own
    for page, text in _generator().pages().items():
        assert page.read_text() == text, f"{page.name} is stale: run `make docs`"


def test_every_block_says_how_it_is_run() -> None:
    known = ("run", "run: serve", "run: client", "run: not here", "file: ")
    assert [str(block) for block in BLOCKS if not block.mark.startswith(known)] == []
    assert _marked("run") and _marked("run: serve") and _marked("run: client")


def _anchors(page: Path) -> set[str]:
    """What its headings are called in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for file, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
            target = page.parent / file if file else page
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{page.name}: {file}#{anchor}")
    assert broken == []


def test_the_complaint_that_is_shown_is_made() -> None:
    page = " ".join((ROOT / "docs/configuration.md").read_text().split())
    with pytest.raises(ConfigError) as caught:
        parse("#\n" * 10 + "server:\n  prot: 80\n", "factory.yaml")
    assert f"error: {caught.value.message}" in page


@pytest.fixture
def sandbox(tmp_path: Path, smollm2: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a data directory with the default models."""
    for path in (smollm2.parent, minilm):
        shutil.copytree(path, tmp_path / "home/models" / path.name, copy_function=_link)
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "model.gguf").symlink_to(smollm2)
    return tmp_path


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def _shell(block: Block, folder: Path) -> str:
    command = (
        [sys.executable, "-c", block.text]
        if block.language == "python"
        else ["bash", "-euo", "pipefail", "-c", block.text]
    )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
    return done.stdout


def _write_files(page: str, folder: Path) -> None:
    for file in BLOCKS:
        if file.page == page and file.mark.startswith("file: "):
            (folder / file.mark.removeprefix("file: ")).write_text(file.text)


@pytest.mark.parametrize("block", _marked("run"), ids=str)
def test_commands(block: Block, sandbox: Path) -> None:
    _write_files(block.page, sandbox)
    assert _shell(block, sandbox)
    assert data_directory() == sandbox / "home"


@contextmanager
def _serving(command: str, folder: Path) -> Iterator[None]:
    """A server from its start to an orderly end."""
    port = re.findall(r"--port (\d+)", command)[-1]
    process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, stdout=subprocess.DEVNULL)
    try:
        while not _answers(f"http://127.0.0.1:{port}/ready"):
            assert process.poll() is None, f"{command} ended with status {process.returncode}"
            time.sleep(0.05)
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(WITHIN_S) == 0
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("block", _marked("run: serve"), ids=str)
def test_servers(block: Block, sandbox: Path) -> None:
    _write_files(block.page, sandbox)
    with _serving(f"{block.text.strip()} --port {_free_port()}", sandbox):
        pass


def test_clients(sandbox: Path) -> None:
    _run_clients([block for block in _marked("run: client") if ";" not in block.mark], "tokenworks serve", sandbox)


def test_clients_of_a_model_that_hears(sandbox: Path, whisper: Path, recording: Path) -> None:
    shutil.copytree(whisper, sandbox / "home/models" / whisper.name, copy_function=_link)
    (sandbox / "speech.wav").symlink_to(recording)
    blocks = [block for block in _marked("run: client") if ";" in block.mark]
    (command,) = {block.mark.partition("; ")[2] for block in blocks}
    _run_clients(blocks, command, sandbox)


def _run_clients(blocks: list[Block], command: str, folder: Path) -> None:
    port = _free_port()
    with _serving(f"{command} --port {port}", folder):
        for block in blocks:
            text = block.text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            assert _shell(Block(block.page, block.line, block.mark, block.language, text), folder)


def test_make_serve_is_tokenworks_serve() -> None:
    """The README's first command, without its set-up: what the set-up makes is what runs this test."""
    command = ["make", "--dry-run", "--no-print-directory", "serve"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert planned.stdout.splitlines()[-1] == ".venv/bin/tokenworks serve"
