"""The table of architectures: each row names what is there, and a model's start imports its own family alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tokenworks.models import families
from tokenworks.models.architectures import GGUF_ARCHITECTURES, GGUF_NAMED_AS, HF_ARCHITECTURES
from tokenworks.models.files.names import GgufArchitecture, HfArchitecture


@pytest.mark.parametrize("model_type", HF_ARCHITECTURES)
def test_a_row_of_safetensors_checkpoints(model_type: str) -> None:
    assert isinstance(HF_ARCHITECTURES[model_type](), HfArchitecture)


@pytest.mark.parametrize("architecture", GGUF_ARCHITECTURES)
def test_a_row_of_gguf_files(architecture: str) -> None:
    assert isinstance(GGUF_ARCHITECTURES[architecture](), GgufArchitecture)


def test_what_gguf_calls_otherwise() -> None:
    assert GGUF_NAMED_AS.keys() <= GGUF_ARCHITECTURES.keys()
    assert set(GGUF_NAMED_AS.values()) <= HF_ARCHITECTURES.keys()
    assert all(theirs != ours for theirs, ours in GGUF_NAMED_AS.items())


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no module 'nobody'"):
        families.nobody  # type: ignore[attr-defined]  # noqa: B018


def test_a_start_imports_one_family(smollm2: Path) -> None:
    """SmolLM2's, which reads with Mixtral's row: files of both are called "llama"."""
    program = f"""
import sys
from pathlib import Path
from tokenworks.models.checkpoint import open_checkpoint
def imported():
    return sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith("tokenworks.models.families."))
print(*imported())
open_checkpoint(Path({str(smollm2)!r}))
print(*imported())
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "\nfrom_gguf from_hf llama mixtral mixtures\n"
