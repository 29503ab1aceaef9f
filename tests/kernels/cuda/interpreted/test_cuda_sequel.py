"""A model's layer that guesses on the GPU backend: its rows against the reference's, from rows that stay on the device;
under the engine, where guesses save steps; by graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from chunked_steps import assert_close
from guessing_model import LIMITS, VOCABULARY, model, passes

from tokenworks.engine.engine import Engine
from tokenworks.engine.multi_token import MultiToken, guess_blocks
from tokenworks.kernels.backend import join_rows
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.device_rows import DeviceRows, rows_on
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.protocol.messages import Generate
from tokenworks.protocol.sampling import Sampling


@pytest.mark.parametrize(("layer", "by_graph"), [("latent attention", False), ("grouped queries", True)])
def test_equals_the_reference(layer: str, by_graph: bool, captured: list[object]) -> None:
    ours, theirs = (backend.compile(*model(layer), LIMITS) for backend in (CudaBackend("cpu"), ReferenceBackend()))
    if by_graph:
        ours._make_graphs(None)

    for mine, right in zip(passes(ours), passes(theirs), strict=True):
        assert mine.shape == right.shape
        if mine.shape[1] == VOCABULARY:
            assert_close(mine, right)
        else:
            np.testing.assert_allclose(mine, right, atol=0.02 * np.ptp(right))
    assert len(captured) == (4 if by_graph else 0), "of 8 and 1 rows, and of the sequel's 8 and 2"


def test_guesses_that_are_right_save_steps(captured: list[object]) -> None:
    """By its clock a pass takes a twentieth of a step."""
    program, weights = model("grouped queries", certain=True)
    blocks = LIMITS.blocks + guess_blocks(LIMITS.sequences, LIMITS.block_tokens)
    executable = CudaBackend("cpu").compile(program, weights, replace(LIMITS, blocks=blocks))
    executable._make_graphs(None)
    ticks = iter(range(1 << 20))
    guessing = MultiToken(executable, LIMITS, lambda: 0.0005 * next(ticks))
    how = {"eos_token_ids": frozenset(), "context_tokens": 64, "vocabulary": VOCABULARY, "tokenizer_json": str}
    engine = Engine(executable, LIMITS, draft=guessing, **how)
    for name, prompt in (("a", (3, 9)), ("b", (30,))):
        engine.add(Generate(name, prompt, Sampling(max_tokens=12, temperature=0.0, seed=1, ignore_eos=True)), 0.0)
    made: dict[str, list[int]] = {"a": [], "b": []}
    steps = 0
    while engine.busy:
        for chunk in engine.step(0.01 * steps).chunks:
            made[chunk.request_id] += chunk.token_ids
        steps += 1
    assert made == {"a": [(10 + i) % VOCABULARY for i in range(12)], "b": [(31 + i) % VOCABULARY for i in range(12)]}
    assert guessing.accepted == guessing.drafted > 2
    assert steps < 11, "with the one that looks at the last tokens"
    assert len(captured) > 2


def test_rows_of_a_device_are_put_together_when_they_are_read() -> None:
    numbers = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    cpu = torch.device("cpu")
    first, second = (DeviceRows([torch.from_numpy(each)], 3, cpu) for each in (numbers[:5], numbers[5:]))
    both = join_rows((first[:0], first, second))
    assert isinstance(both, DeviceRows) and both.shape == (9, 3) and len(both) == 9
    for some in (slice(0, 9), slice(3, 7), slice(6, None), slice(2, 2), slice(-4, -1)):
        np.testing.assert_array_equal(np.asarray(both[some]), numbers[some])
        np.testing.assert_array_equal(rows_on(both[some], cpu).numpy(), numbers[some])
    np.testing.assert_array_equal(both[[1, 8]], numbers[[1, 8]])
    large = torch.zeros(1000, 2000)
    assert DeviceRows([large], 2000, cpu)[5:6].tensor().untyped_storage().nbytes() == 8000
