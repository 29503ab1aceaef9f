"""Real weights for every room's tests: pulled once through the model sources, then found on the disk."""

import signal
import zipfile
from pathlib import Path

import pytest

from tokenworks.models.sources import wheels
from tokenworks.models.sources.progress import Silent
from tokenworks.models.sources.resolve import resolve
from tokenworks.protocol.errors import ModelError

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
def whisper() -> Path:
    """Whisper tiny.en, in CTranslate2's folder, float16."""
    return resolve("whisper-tiny-en").path


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of a voice, WAV, 16 kHz, from a package that ships them as its example (MIT)."""
    folder = tmp_path_factory.mktemp("recording")
    try:
        (wheel,) = wheels.fetch(wheels.find(["useful-moonshine-onnx==20251121"]), folder, Silent())
    except ModelError as error:
        pytest.skip(f"the recording cannot be had: {error.message}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("moonshine_onnx/assets/beckett.wav", folder))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, a safetensors checkpoint."""
    return resolve("minilm-l6").path
