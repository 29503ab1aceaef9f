import signal
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from running_factory import Factory, start_factory


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
