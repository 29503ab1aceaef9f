"""Sampling and log-probabilities, as they are compiled, at the largest of vocabularies."""

import pytest

pytest.importorskip("triton")

import torch
from compile_gate import assert_compiles, launches_of

from tokenworks.kernels.cuda.logprobs import logprobs
from tokenworks.kernels.cuda.sample import sample


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_sampling() -> None:
    floats = [meta(64) for _ in range(3)]
    whole = [meta(64, dtype=torch.int32) for _ in range(2)]
    for launch in launches_of(lambda: sample(meta(64, 262144), meta(64), whole[0], *floats, whole[1])):
        assert_compiles(launch, [90])


def test_log_probabilities() -> None:
    whole = [meta(64, dtype=torch.int32) for _ in range(2)]
    tops = meta(64, 20, dtype=torch.int32), meta(64, 20)
    for launch in launches_of(lambda: logprobs(meta(64, 262144), whole[0], meta(64), whole[1], *tops)):
        assert_compiles(launch, [90])
