"""Whole small models with weights of 4 and 8 bits through the GPU backend, against the reference on the same ones."""

import copy
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from chunked_steps import LIMITS, STEPS, assert_close
from small_checkpoints import DECODERS, write_decoder

from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint


def quantised(tensors: Mapping[str, Tensor], formats: Mapping[str, str]) -> dict[str, Tensor]:
    """In the format that the last part of their name says."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if form := formats.get(name.rpartition(".")[2]):
            data = gguf.quants.quantize(dequantise(tensor), gguf.GGMLQuantizationType[form])
            found[name] = Tensor(name, form, tensor.shape, np.ascontiguousarray(data).reshape(-1))
    return found


CASES = {
    "qwen3": {"v": "Q8_0", "q": "Q4_0", "k": "Q4_0", "gate": "Q4_0", "up": "Q4_0", "down": "Q4_1", "head": "Q8_0"},
    "qwen3-moe": {"gate": "MXFP4", "up": "MXFP4", "down": "MXFP4"},
}


@pytest.mark.parametrize("name", CASES)
def test_steps_of_prompts_and_decodes(name: str, tmp_path: Path) -> None:
    config = copy.deepcopy(DECODERS[name])
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = 64, 1, 96
    config.moe_intermediate_size = 32
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[-1:]
    write_decoder(name, tmp_path, torch.bfloat16, config)
    checkpoint = open_checkpoint(tmp_path)
    tensors = quantised(checkpoint.tensors, CASES[name])
    assert {tensor.format for tensor in tensors.values()} == {"BF16", "F32", *CASES[name].values()}
    ours = CudaBackend("cpu").compile(checkpoint.program(), tensors, LIMITS)
    theirs = ReferenceBackend().compile(checkpoint.program(), tensors, LIMITS)
    whole = CudaBackend("cpu").compile(checkpoint.program(), checkpoint.tensors, LIMITS)
    assert ours.weight_bytes < 0.85 * whole.weight_bytes
    for step in STEPS[:2]:
        assert_close(np.asarray(ours.run(step)), theirs.run(step))
