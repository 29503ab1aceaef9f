"""Two ranks on the GPU backend, as processes that meet through gloo: the engine's tokens are those of one."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Pipe
from pathlib import Path

import numpy as np
import pytest
import rank_process
import torch
from small_checkpoints import DECODERS, write_decoder

from tokenworks.engine.engine import Engine
from tokenworks.kernels.backend import Backend, Limits
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.group import TorchGroup
from tokenworks.kernels.shard import RankBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.messages import Generate, TokenLogprobs
from tokenworks.protocol.sampling import Sampling

PROMPT = [(7 * i * i + 3) % 100 for i in range(9)]
LIMITS = Limits(8, 4, 4, 32, 4, "bfloat16", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2-moe")
    config = copy.deepcopy(DECODERS["qwen2-moe"])
    config.num_hidden_layers, config.layer_types = 1, config.layer_types[:1]
    write_decoder("qwen2-moe", folder, torch.bfloat16, config)
    return folder


@pytest.fixture(scope="module")
def first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankBackend]:
    """The first rank's backend; the other runs."""
    meeting = tmp_path_factory.mktemp("meeting") / "file"
    ours, theirs = Pipe()
    command = [sys.executable, rank_process.__file__, str(theirs.fileno()), str(folder), str(meeting)]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    inner = CudaBackend("cpu", TorchGroup(0, 2, meeting, "cpu"))
    ours.send(LIMITS)
    yield RankBackend(inner, 0, 2, lambda call: ours.send_bytes(pickle.dumps(call)))
    ours.close()
    assert process.wait(30) == 0
    torch.distributed.destroy_process_group()


def replies(folder: Path, backend: Backend) -> tuple[list[int], list[int], list[TokenLogprobs]]:
    """Tokens of a greedy and of a sampled request, run together, and what the greedy one says of them."""
    checkpoint = open_checkpoint(folder)
    executable = backend.compile(checkpoint.program(), checkpoint.tensors, LIMITS)
    how = {"eos_token_ids": frozenset(), "context_tokens": 64, "vocabulary": 101, "speculate": False}
    engine = Engine(executable, LIMITS, tokenizer_json=str, **how)
    engine.add(Generate("0", tuple(PROMPT), Sampling(max_tokens=3, temperature=0.0, seed=5, logprobs=2)), 0.0)
    engine.add(Generate("1", tuple(PROMPT[:6]), Sampling(max_tokens=3, temperature=0.9, top_k=5, seed=5)), 0.0)
    tokens: tuple[list[int], list[int]] = ([], [])
    logprobs: list[TokenLogprobs] = []
    while engine.busy:
        for chunk in engine.step(0.0).chunks:
            tokens[int(chunk.request_id)].extend(chunk.token_ids)
            logprobs += chunk.logprobs
    return *tokens, logprobs


def test_as_one(folder: Path, first: RankBackend) -> None:
    *tokens, logprobs = replies(folder, first)
    *alone, expected = replies(folder, CudaBackend("cpu"))
    assert tokens == alone
    assert [len(each) for each in tokens] == [3, 3]
    found = [value for each in logprobs for _, value in each.top]
    np.testing.assert_allclose(found, [value for each in expected for _, value in each.top], atol=0.05)
