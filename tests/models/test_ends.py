"""The short way to a model's ends says what its tokenizer says."""

import subprocess
import sys

import pytest

from tokenworks.models.text.ends import eos_token_ids
from tokenworks.models.text.tokenizer import load_tokenizer


@pytest.mark.parametrize("model", ["smollm2", "gemma3", "minilm"])
def test_ends_are_the_tokenizers(model, request):
    path = request.getfixturevalue(model)
    assert eos_token_ids(path) == load_tokenizer(path).eos_token_ids


def test_no_tokenizer_is_built_for_a_gguf_file(smollm2):
    program = f"""
import sys
from pathlib import Path
from tokenworks.models.text.ends import eos_token_ids
assert eos_token_ids(Path({str(smollm2)!r})) == {{0, 2}}
assert "tokenizers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
