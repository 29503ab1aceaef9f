import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from running_factory import Factory, start_factory


@pytest.fixture(scope="session")
def crossing(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cross-encoder with random weights, and MiniLM's tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("crossing")
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=40, num_labels=1,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.4)
    model.save_pretrained(folder)
    shutil.copyfile(minilm / "tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="session")
def factory(smollm2: Path, minilm: Path, crossing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    factory = start_factory(smollm2, minilm, crossing, tmp_path_factory.mktemp("data"))
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
