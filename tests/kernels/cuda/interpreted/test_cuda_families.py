"""Whole small models through the GPU backend, on CPU tensors, against the reference: chunks of prompts, decodes."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from chunked_steps import LIMITS, STEPS, assert_close, assert_steps, batch, compiled
from small_checkpoints import DECODERS, write_decoder

from tokenworks.kernels.backend import StateBatch
from tokenworks.kernels.cuda import inputs
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.graphs import Graphs
from tokenworks.kernels.program import ProgramBuilder
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor

FAMILIES = ["llama-tied-biased", "qwen3", "gemma2", "gpt-neox", "deepseek-v3", "qwen3-5", "bamba"]

WIDE = replace(LIMITS, sequences=8)


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
    ours = compiled(written(name), CudaBackend("cpu"))
    reserved = ours._scratch.nbytes
    assert_steps(ours, compiled(written(name), ReferenceBackend()))
    assert ours._scratch.nbytes == reserved, "graphs hold addresses"


@pytest.mark.parametrize("name", ["qwen3-5", "bamba"])
def test_states_go_through_guesses_by_graph(name: str, written: Callable[[str], Path], captured: list[object]) -> None:
    """Behind each guess a state is kept; the next step begins with that of the first."""
    ours, theirs = (compiled(written(name), backend) for backend in (CudaBackend("cpu"), ReferenceBackend()))
    ours._main.graphs = graphs = Graphs(WIDE, ours._main.plan, ours._scratch, ours._adapters, None)
    assert graphs.sizes == [1, 2, 4, 8]
    guesses = batch((1, 2, 5), (0, 3, 4), wanted=[0, 1, 2, 3])
    kept = StateBatch(np.array([1, 0], np.int32), np.array([0, 1, 2, 3], np.int32), np.array([2, 3, 1, 0], np.int32))
    after = batch((1, 3, 4), (0, 4, 6), wanted=[0, 1, 2])
    begun = StateBatch(np.array([2, 0], np.int32), np.array([0, 2], np.int32), np.array([2, 0], np.int32))
    for step in (
        batch((1, 0, 2), (0, 0, 3), wanted=[1]),
        replace(guesses, states=kept),
        replace(after, states=begun),
    ):
        assert_close(np.asarray(ours.run(step)), theirs.run(step))
        captured.pop()
        graphs.drop()


def test_alone_is_as_among_others(written: Callable[[str], Path]) -> None:
    model = compiled(written("qwen3"), CudaBackend("cpu"))
    for step in STEPS[:2]:
        model.run(step)
    together = np.asarray(model.run(STEPS[2]))
    for row, piece in enumerate([(2, 9, 10), (0, 22, 23)]):
        np.testing.assert_array_equal(model.run(batch(piece))[0], together[2 * row])


def test_parts_of_a_step_take_its_rows_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    b, rng = ProgramBuilder(), np.random.default_rng(1)
    x = b.activate(b.linear(b.input(32), ("first",), 32), "gelu")
    b.pause()
    program = b.finish(b.linear(x, ("second",), 32))
    numbers = {name: rng.standard_normal((32, 32)).astype(np.float32) / 6 for name in ("first", "second")}
    weights = {name: Tensor(name, "F32", (32, 32), each.reshape(-1).view(np.uint8)) for name, each in numbers.items()}
    step = replace(batch((0, 0, 9)), inputs=rng.standard_normal((9, 32)).astype(np.float32), states=None)
    taken: list[int] = []

    def taking(rows: np.ndarray, device: torch.device) -> torch.Tensor:
        taken.append(len(rows))
        return torch.from_numpy(rows).to(device)

    monkeypatch.setattr(inputs, "rows_on", taking)
    made = []
    for backend in (CudaBackend("cpu"), ReferenceBackend()):
        model = backend.compile(program, weights, LIMITS)
        assert [len(model.run(step, part)) for part in range(model.parts)][:-1] == [0]
        made.append(np.array(model.run(step, 1)))
    np.testing.assert_allclose(*made, atol=0.02 * np.ptp(made[1]))
    assert taken == [9]
