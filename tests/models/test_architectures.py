"""Every architecture against transformers: small random checkpoints, logits of whole prompts."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small_checkpoints import (
    DECODERS,
    greedy,
    log_softmax,
    our_logits,
    reference_logits,
    reference_model,
    write_decoder,
)

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.check import needs
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.models.decoder import decoder_program, decoder_shapes
from tokenworks.models.files.safetensors import open_safetensors

BACKENDS = [ReferenceBackend(), CpuBackend()]
IDS = np.random.default_rng(3).integers(0, 101, 37).tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint of DECODERS, written once."""

    @cache
    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        write_decoder(name, folder)
        return folder

    return write


@cache
def theirs_of(folder: Path) -> npt.NDArray[np.float64]:
    return log_softmax(reference_logits(reference_model(folder), IDS))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_transformers(name: str, backend: Backend, written: Callable[[str], Path]) -> None:
    folder = written(name)
    theirs = theirs_of(folder)
    assert np.ptp(theirs, axis=-1).min() > 1, "weights so small that nothing is tested"
    whole = log_softmax(our_logits(folder, IDS, backend))
    np.testing.assert_allclose(whole, theirs, atol=1e-4, rtol=0)
    chunked = log_softmax(our_logits(folder, IDS, backend, chunk_tokens=5))
    np.testing.assert_allclose(chunked, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_half_precision_weights_in_shards(backend: Backend, dtype: torch.dtype, tmp_path: Path) -> None:
    write_decoder("gemma3", tmp_path, dtype, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    theirs = log_softmax(reference_logits(reference_model(tmp_path), IDS))
    ours = log_softmax(our_logits(tmp_path, IDS, backend))
    if dtype == torch.bfloat16 and isinstance(backend, CpuBackend) and backend.isa in ("avx512_bf16", "amx"):
        # Products' inputs are rounded to bfloat16; the library's own arithmetic in it rounds everything else as well.
        rounded = log_softmax(reference_logits(reference_model(tmp_path).to(dtype), IDS))
        assert np.square(ours - theirs).mean() < np.square(rounded - theirs).mean() / 2
    else:
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_stacked_as_transformers_has_them_in_memory(name: str, tmp_path: Path) -> None:
    write_decoder(name, tmp_path / "each")
    write_decoder(name, tmp_path / "stacked", save_original_format=False)
    assert len(open_safetensors(tmp_path / "stacked")) < len(open_safetensors(tmp_path / "each")) / 2
    each, stacked = (our_logits(tmp_path / form, IDS, CpuBackend()) for form in ("each", "stacked"))
    np.testing.assert_array_equal(each, stacked)


# A tied head may repeat one token.
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "qwen3",
        "gemma3-softcaps",
        "qwen2-moe",
        "deepseek-v3",
        "mamba2",
        "nemotron-h",
        "gemma3n-none-shared",
        "gemma4-experts",
        "falcon-h1",
        "cohere2",
    ],
)
def test_greedy_continuations_are_those_of_transformers(name: str, written: Callable[[str], Path]) -> None:
    folder, prompt = written(name), IDS[:11]
    made = greedy(folder, prompt, 200, CpuBackend())
    # One pass over all of it shows what the reference would have chosen at every place.
    theirs = reference_logits(reference_model(folder), prompt + made)
    assert theirs[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == made
    assert len(set(made)) > 3


@pytest.mark.parametrize(
    "name", ["phi3", "olmo2", "olmo3", "glm4", "mixtral", "qwen3-moe", "granite-moe", "glm4-moe", "gpt-oss", "bamba"]
)
def test_what_a_config_leaves_out_is_what_its_class_has(name: str, tmp_path: Path) -> None:
    write_decoder(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rms_norm_eps", "rope_parameters", *(["num_key_value_heads"] if name == "glm4" else [])):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = log_softmax(reference_logits(reference_model(tmp_path), IDS))
    np.testing.assert_allclose(log_softmax(our_logits(tmp_path, IDS, CpuBackend())), theirs, atol=1e-4, rtol=0)


def test_long_rope_follows_the_context_that_is_served(tmp_path: Path) -> None:
    write_decoder("phi3-partial-long", tmp_path)
    prompt = IDS[:12]  # within the 16 tokens for which the short factors are made
    theirs = reference_logits(reference_model(tmp_path), prompt)
    ours = our_logits(tmp_path, prompt, ReferenceBackend(), context_tokens=16)
    np.testing.assert_allclose(log_softmax(ours), log_softmax(theirs), atol=1e-4, rtol=0)
    assert np.abs(ours - our_logits(tmp_path, prompt, ReferenceBackend())).max() > 0.01


@pytest.mark.parametrize("name", DECODERS)
def test_a_program_reads_exactly_the_weights_it_declares(name: str, written: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(written(name))
    assert checkpoint.config.kind == "generate"
    read = set(needs(decoder_program(checkpoint.config)))
    ropes = {f"rope.{rope}" for rope in checkpoint.config.ropes}
    ropes |= {"rope.temperature"} if checkpoint.config.temperature else set()
    assert read == decoder_shapes(checkpoint.config).keys() | ropes == set(checkpoint.tensors)
    assert len(checkpoint.tensors) == len(set(checkpoint.tensors))
    for tensor_name, tensor in checkpoint.tensors.items():
        assert tensor.name == tensor_name
        assert len(tensor.shape) == 2 or tensor.format == "F32"
