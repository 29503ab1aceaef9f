"""A model's layer that guesses on the GPU backend: its rows against the reference's, from rows that stay on the device;
under the engine, where guesses save steps; by graph."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chunked_steps import assert_close

from tokenworks.engine.engine import Engine
from tokenworks.engine.multi_token import MultiToken, guess_blocks
from tokenworks.kernels.backend import Executable, Float32, Limits, StepBatch
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.device_rows import DeviceRows, rows_on
from tokenworks.kernels.cuda.graphs import Graphs
from tokenworks.kernels.program import Program
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.config import DecoderConfig, Layer
from tokenworks.models.decoder import decoder_program, decoder_shapes
from tokenworks.models.parts.attention import Attention
from tokenworks.models.parts.experts import Mixture
from tokenworks.models.parts.latent import Latent
from tokenworks.models.parts.mlp import Mlp
from tokenworks.models.parts.multi_token import multi_token_program, multi_token_shapes
from tokenworks.models.parts.rope import Rope
from tokenworks.protocol.messages import Generate
from tokenworks.protocol.sampling import Sampling

WIDTH, VOCABULARY = 64, 40
LATENT = Latent(heads=4, rank=32, turned=16, unturned=16, value_size=16, scale=0.2, rope="global")
LAYERS = {
    "latent attention": Layer(
        mixer=LATENT, feed_forward=Mixture(experts=4, width=32, top_k=2, activation="silu", normalise=True)
    ),
    "grouped queries": Layer(
        mixer=Attention(heads=4, kv_heads=2, head_size=16, scale=0.25, rope="global", turned=16),
        feed_forward=Mlp(width=64, activation="silu"),
    ),
}
LIMITS = Limits(16, 8, 8, 32, 4, "bfloat16", 1)


@cache
def model(layer: str, *, certain: bool = False) -> tuple[Program, dict[str, Tensor]]:
    """One layer, and one that guesses. `certain`: token t is followed by t + 1, and the layer knows that."""
    config = DecoderConfig(
        architecture="small", vocabulary=VOCABULARY, context_tokens=64, width=WIDTH, layers=(LAYERS[layer],),
        ropes={"global": Rope(size=16, base=1e4)}, norm_epsilon=1e-5, tied_head=False, multi_token=LAYERS[layer],
    )  # fmt: skip
    rng, values = np.random.default_rng(3), {}
    for name, shape in (decoder_shapes(config) | multi_token_shapes(config, LAYERS[layer])).items():
        scale = 1.0 if name == "embed" else 1.5 / shape[-1] ** 0.5
        values[name] = 1 + 0.1 * rng.standard_normal(shape) if len(shape) == 1 else rng.standard_normal(shape) * scale
        if certain and name.endswith((".o", ".out", ".down")):
            values[name] *= 0
    if certain:
        values["head"] = values["embed"][np.arange(VOCABULARY) - 1]
        values["layers.1.join"] = np.eye(WIDTH, 2 * WIDTH)
    values["rope.global"] = config.ropes["global"].inverse_frequencies(64)
    weights = {}
    for name, array in values.items():
        array = torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(torch.bfloat16).float().numpy()
        weights[name] = Tensor(name, "F32", array.shape, array.reshape(-1).view(np.uint8))
    sequel = multi_token_program(config, LAYERS[layer])
    return replace(decoder_program(config, hands_out=True), sequel=sequel), weights


def batch(*pieces: tuple[int, int, int], hidden: Float32 | None = None, wanted: list[int] | None = None) -> StepBatch:
    """(sequence, from, to) of tokens 5 * position + sequence."""
    where = [(sequence, at) for sequence, first, end in pieces for at in range(first, end)]
    starts = np.cumsum([0, *(end - first for _, first, end in pieces)], dtype=np.int32)
    tables = np.array([8 * sequence + np.arange(8)[::-1] for sequence, _, _ in pieces], np.int32)
    tokens = np.array([(5 * at + sequence) % VOCABULARY for sequence, at in where], np.int32)
    rows = np.array(range(len(where)) if wanted is None else wanted, np.int32)
    return StepBatch(tokens, np.array([at for _, at in where], np.int32), starts, tables, rows, inputs=hidden)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Something for each capture."""
    found: list[bool] = []

    def capture(self: Graphs, launch_all: Callable[[], None]) -> SimpleNamespace:
        found.append(True)
        return SimpleNamespace(replay=launch_all)

    monkeypatch.setattr(Graphs, "_capture", capture)
    return found


@pytest.mark.parametrize(("layer", "by_graph"), [("latent attention", False), ("grouped queries", True)])
def test_equals_the_reference(layer: str, by_graph: bool, captured: list[bool]) -> None:
    ours, theirs = (backend.compile(*model(layer), LIMITS) for backend in (CudaBackend("cpu"), ReferenceBackend()))
    if by_graph:
        ours._make_graphs(None)

    def passes(model: Executable) -> list[np.ndarray]:
        """Prompts; then two pairs of one sequence and three of the other; then the guess behind each."""
        prompts = batch((2, 0, 4), (0, 0, 3), wanted=[3, 6])
        made = [np.asarray(model.run(prompts)).copy()]
        hidden = model.hidden
        made.append(np.asarray(hidden).copy())
        pairs = np.concatenate((hidden[2:4], hidden[4:7]))
        logits, further = model.run_sequel(batch((2, 3, 5), (0, 1, 4), hidden=pairs, wanted=[1, 4]))
        assert logits.argmax(axis=1).tolist() == np.asarray(logits).argmax(axis=1).tolist()
        made += [np.asarray(logits).copy(), np.asarray(further).copy()]
        inputs = np.concatenate([further[1:2], further[:1]])
        made += [np.asarray(each).copy() for each in model.run_sequel(batch((0, 4, 5), (2, 5, 6), hidden=inputs))]
        made.append(np.asarray(model.run(batch((2, 4, 5)))).copy())
        return made

    for mine, right in zip(passes(ours), passes(theirs), strict=True):
        assert mine.shape == right.shape
        if mine.shape[1] == VOCABULARY:
            assert_close(mine, right)
        else:
            np.testing.assert_allclose(mine, right, atol=0.02 * np.ptp(right))
    assert len(captured) == (4 if by_graph else 0), "of 8 and 1 rows, and of the sequel's 8 and 2"


def test_guesses_that_are_right_save_steps(captured: list[bool]) -> None:
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
        engine.add(Generate(name, prompt, Sampling(max_tokens=8, temperature=0.0, seed=1, ignore_eos=True)), 0.0)
    made: dict[str, list[int]] = {"a": [], "b": []}
    steps = 0
    while engine.busy:
        for chunk in engine.step(0.01 * steps).chunks:
            made[chunk.request_id] += chunk.token_ids
        steps += 1
    assert made == {"a": [(10 + i) % VOCABULARY for i in range(8)], "b": [(31 + i) % VOCABULARY for i in range(8)]}
    assert guessing.accepted == guessing.drafted > 2
    assert steps < 8
    assert len(captured) > 2


def test_rows_of_a_device_are_put_together_when_they_are_read() -> None:
    numbers = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    cpu = torch.device("cpu")
    first, second = (DeviceRows([torch.from_numpy(each)], 3, cpu) for each in (numbers[:5], numbers[5:]))
    both = np.concatenate((np.empty((0, 3), np.float32), first, second))
    assert isinstance(both, DeviceRows) and both.shape == (9, 3) and len(both) == 9
    for some in (slice(0, 9), slice(3, 7), slice(6, None), slice(2, 2), slice(-4, -1)):
        np.testing.assert_array_equal(np.asarray(both[some]), numbers[some])
        np.testing.assert_array_equal(rows_on(both[some], cpu).numpy(), numbers[some])
    np.testing.assert_array_equal(both[[1, 8]], numbers[[1, 8]])
    large = torch.zeros(1000, 2000)
    assert DeviceRows([large], 2000, cpu)[5:6].tensor().untyped_storage().nbytes() == 8000
    with pytest.raises(TypeError):
        np.stack((both, both))
