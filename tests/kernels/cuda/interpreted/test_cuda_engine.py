"""The engine on the GPU backend: tokens are drawn from logits that stay on the device, options change rows of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_checkpoints import DECODERS, write_decoder

from tokenworks.engine.adapters import AdapterSlots
from tokenworks.engine.engine import Engine
from tokenworks.kernels.adapter import LowRank
from tokenworks.kernels.backend import Backend, Float32, Limits, StepBatch
from tokenworks.kernels.cuda.backend import CudaBackend, CudaExecutable
from tokenworks.kernels.cuda.sampling.logits import DeviceLogits
from tokenworks.kernels.program import Linear
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import Checkpoint, open_checkpoint
from tokenworks.protocol.messages import Adapter, Generate, TokenChunk
from tokenworks.protocol.sampling import Sampling

PROMPT = [(7 * i * i + 3) % 100 for i in range(9)]
REQUESTS = [
    ("greedy", PROMPT, {"temperature": 0.0, "logprobs": 3}),
    ("sampled", PROMPT[:6], {"temperature": 0.9, "top_k": 5, "top_p": 0.9}),
    ("biased", PROMPT[2:], {"temperature": 0.0, "logit_bias": {17: 100.0, 18: 99.0}, "repetition_penalty": 9.0}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = DECODERS["llama"].__class__(**DECODERS["llama"].to_dict() | {"num_hidden_layers": 1})
    write_decoder("llama", folder, torch.bfloat16, config)
    return folder


def replies(folder: Path, backend: Backend, names: list[str]) -> dict[str, list[TokenChunk]]:
    checkpoint = open_checkpoint(folder)
    limits = Limits(8, 4, 4, 32, 4, "bfloat16", 1)
    executable = backend.compile(checkpoint.program(), checkpoint.tensors, limits)
    how = {"eos_token_ids": frozenset(), "context_tokens": 64, "vocabulary": 101, "speculate": False}
    engine = Engine(executable, limits, tokenizer_json=str, **how)
    for name, prompt, sampling in REQUESTS:
        if name in names:
            engine.add(Generate(name, tuple(prompt), Sampling(**{"max_tokens": 3, "seed": 5} | sampling)), 0.0)
    found: dict[str, list[TokenChunk]] = {name: [] for name in names}
    while engine.busy:
        for chunk in engine.step(0.0).chunks:
            found[chunk.request_id].append(chunk)
    return found


def tokens(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def test_as_the_reference_and_the_same_alone_as_together(folder: Path) -> None:
    names = [name for name, *_ in REQUESTS]
    together, oracle = (replies(folder, backend, names) for backend in (CudaBackend("cpu"), ReferenceBackend()))
    for name in names:
        assert len(tokens(together[name])) == 3
        assert tokens(together[name]) == tokens(oracle[name])
    assert tokens(together["biased"])[:2] == [17, 18], "the penalty on the first, divided, lets the second pass"
    assert tokens(replies(folder, CudaBackend("cpu"), ["sampled"])["sampled"]) == tokens(together["sampled"])
    ours, theirs = ([each for chunk in some["greedy"] for each in chunk.logprobs] for some in (together, oracle))
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.rank == right.rank == 1
        assert mine.logprob == pytest.approx(right.logprob, abs=0.05)
        assert [token for token, _ in mine.top] == [token for token, _ in right.top]


def adaptation(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, LowRank]:
    """Of every map of the model but its head."""
    rng = np.random.default_rng(int(adapter.path))

    def tensor(*shape: int) -> Tensor:
        numbers = (rng.standard_normal(shape) / shape[1] ** 0.5).astype(np.float32)
        return Tensor("side", "F32", shape, numbers.reshape(-1).view(np.uint8))

    found = {}
    for op in checkpoint.program().instructions:
        for name in op.weights if isinstance(op, Linear) and op.weights != ("head",) else ():
            rows, columns = checkpoint.tensors[name].shape
            found[name] = LowRank(tensor(4, columns), tensor(rows, 4), 1.5)
    return found


def adapted_replies(folder: Path, backend: Backend, names: list[str]) -> dict[str, list[int]]:
    """Of greedy requests with the adapter of their name's number, and a base's one; they come one step after the
    other, to two slots."""
    checkpoint = open_checkpoint(folder)
    limits = Limits(8, 4, 4, 32, 4, "bfloat16", 1)
    executable = backend.compile(checkpoint.program(), checkpoint.tensors, limits)
    how = {"eos_token_ids": frozenset(), "context_tokens": 64, "vocabulary": 101, "speculate": False}
    slots = AdapterSlots(executable, 2, lambda adapter: adaptation(checkpoint, adapter))
    engine = Engine(executable, limits, tokenizer_json=str, adapters=slots, **how)
    waiting = [
        Generate(name, tuple(PROMPT[:3]), Sampling(max_tokens=2, temperature=0.0, seed=1), adapter=adapter)
        for name in names
        for adapter in [Adapter(name, name) if name.isdigit() else None]
    ]
    found: dict[str, list[int]] = {name: [] for name in names}
    while engine.busy or waiting:
        if waiting:
            engine.add(waiting.pop(0), 0.0)
        for chunk in engine.step(0.0).chunks:
            found[chunk.request_id] += chunk.token_ids
    return found


def test_adapters_come_and_go_while_others_run(folder: Path) -> None:
    names = ["1", "base", "2", "3"]
    together, oracle = (adapted_replies(folder, backend, names) for backend in (CudaBackend("cpu"), ReferenceBackend()))
    assert together == oracle
    assert len({tuple(tokens) for tokens in together.values()}) == 4
    assert adapted_replies(folder, CudaBackend("cpu"), ["3"])["3"] == together["3"]


def test_steps_begin_before_tokens_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of greedy, sampled and adjusted sequences alike."""
    unseen: list[int] = []
    run = CudaExecutable.run

    def watched(self: CudaExecutable, batch: StepBatch, part: int | None = None) -> Float32:
        unseen.append(int((batch.tokens < 0).sum()))
        return run(self, batch, part)

    monkeypatch.setattr(CudaExecutable, "run", watched)
    replies(folder, CudaBackend("cpu"), [name for name, *_ in REQUESTS])
    assert max(unseen) == 3
    assert sum(unseen) == 6, "all but the first token of each"


def test_rows_of_a_device_behave_as_numpys() -> None:
    numbers = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    rows = DeviceLogits(torch.from_numpy(numbers.copy()))
    assert len(rows) == 4 and rows.shape == (4, 5)
    np.testing.assert_array_equal(rows[1], numbers[1])
    np.testing.assert_array_equal(np.asarray(rows[[2, 0]]), numbers[[2, 0]])
    np.testing.assert_array_equal(np.asarray(rows[1:3][:1]), numbers[1:2])
    few = rows[:, :3]
    assert isinstance(few, DeviceLogits)
    np.testing.assert_array_equal(few.argmax(axis=1), numbers[:, :3].argmax(axis=1))
    row = rows[3]
    row[:] = 7
    rows[3] = row
    rows[np.array([True, False, False, False])] = 0
    rows[1] = -1
    np.testing.assert_array_equal(
        np.asarray(rows), [[0] * 5, [-1] * 5, numbers[2], [7] * 5]
    )  # ... until it is put back
