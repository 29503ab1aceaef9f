import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import httpx
import openai
import psutil
import pytest

SCRIPT = Path(__file__).with_name("factory_process.py")


@dataclass(frozen=True)
class Factory:
    url: str
    process: subprocess.Popen[str]

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def start_factory(smollm2: Path, minilm: Path, data: Path) -> Factory:
    command = [sys.executable, str(SCRIPT), str(smollm2), str(minilm), str(data)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), f"the factory exited with status {process.wait(10)}"
    return Factory(url, process)


@pytest.fixture(scope="session")
def factory(smollm2: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    factory = start_factory(smollm2, minilm, tmp_path_factory.mktemp("data"))
    yield factory
    factory.process.send_signal(signal.SIGTERM)
    assert factory.process.wait(20) == 0


@pytest.fixture
def http(factory: Factory) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=factory.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(factory: Factory) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{factory.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def claude(factory: Factory) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=factory.url, api_key="any", max_retries=0, timeout=60) as client:
        yield client
