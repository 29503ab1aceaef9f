"""A factory process to be a client of."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

SCRIPT = Path(__file__).with_name("factory_process.py")


@dataclass(frozen=True)
class Factory:
    url: str
    process: subprocess.Popen[str]

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def start_factory(smollm2: Path, minilm: Path, crossing: Path, data: Path) -> Factory:
    """`crossing`: a cross-encoder."""
    return start(SCRIPT, smollm2, minilm, crossing, data)


def start(script: Path, *arguments: Path) -> Factory:
    """A script that prints its factory's URL."""
    process = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), f"the factory exited with status {process.wait(10)}"
    return Factory(url, process)
