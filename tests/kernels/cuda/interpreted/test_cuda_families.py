"""Whole small models through the GPU backend, on CPU tensors, against the reference: chunks of prompts, decodes."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from chunked_steps import STEPS, assert_steps, batch, compiled
from small_checkpoints import DECODERS, write_decoder

from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.reference import ReferenceBackend

FAMILIES = ["llama-tied-biased", "qwen3", "gemma2", "gpt-neox", "deepseek-v3", "qwen3-5", "bamba"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def write(name: str) -> Path:
        folder, config = tmp_path_factory.mktemp(name), copy.deepcopy(DECODERS[name])
        config.num_hidden_layers = 2
        if "layer_types" in vars(config) and config.layer_types:
            config.layer_types = config.layer_types[-2:]
        write_decoder(name, folder, torch.bfloat16, config)
        return folder

    return write


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_of_prompts_and_decodes(name: str, written: Callable[[str], Path]) -> None:
    assert_steps(*(compiled(written(name), backend) for backend in (CudaBackend("cpu"), ReferenceBackend())))


def test_alone_is_as_among_others(written: Callable[[str], Path]) -> None:
    model = compiled(written("qwen3"), CudaBackend("cpu"))
    for step in STEPS[:2]:
        model.run(step)
    together = np.asarray(model.run(STEPS[2]))
    for row, piece in enumerate([(2, 9, 10), (0, 22, 23)]):
        np.testing.assert_array_equal(model.run(batch(piece))[0], together[2 * row])
