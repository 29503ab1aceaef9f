"""Real weights for every room's tests: pulled once through the model sources, then found on the disk."""

import signal
from pathlib import Path

import pytest

from tokenworks.models.sources import resolve

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: those under test are to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, GGUF Q4_1 (embedding Q8_0)."""
    return resolve("smollm2-135m").path


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M, GGUF Q4_K_M."""
    return resolve("gemma3-270m").path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a safetensors checkpoint."""
    return resolve("minilm-l6").path
