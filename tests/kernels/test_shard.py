"""Programs divided among ranks: together they compute what the whole one does, each with its part of the weights.

Bound: ranks add up in another order, in float32; their sums differ in the last bit (2^-24), of which the layers of
these models make some dozens. A head, a block or a bias that is lost or counted twice makes more than a percent.
"""

import pickle
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ranks import Meeting, ThreadGroup, on_ranks
from small_checkpoints import our_logits, write_decoder
from speech_checkpoints import HEARD, noise, write_whisper
from test_multi_token_layers import write as write_guessing
from test_whisper import _logits as logits_of_sound

from tokenworks.kernels.adapter import LowRank
from tokenworks.kernels.backend import Backend, Limits, StepBatch
from tokenworks.kernels.check import needs
from tokenworks.kernels.formats import dequantise, tensor_bytes
from tokenworks.kernels.program import (
    Add,
    AllGather,
    AllReduce,
    Broadcast,
    Embed,
    Gate,
    Linear,
    Program,
    ProgramBuilder,
    RmsNorm,
)
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.shard import Call, Cut, RankBackend, cut_of
from tokenworks.kernels.tensor import Tensor
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.errors import ModelError

BOUND = 1e-5
IDS = [(7 * i * i + 3) % 100 for i in range(14)]
FAMILIES = {
    "llama-tied-biased": (2, 4),  # five heads over one of K and V; the head reads the embeddings
    "qwen2": (2, 3),  # six over three
    "gpt-neox": (2,),  # both halves of a layer join the stream at once
    "olmo2": (2,),  # norms over all heads, which are whole on every rank
    "gemma3n": (2,),  # streams side by side, layers that read others' cache, K and V of a norm's
    "gemma4-experts": (2,),
    "deepseek-v3": (3,),  # latent attention
    "gpt-oss": (2,),  # sinks; biases of experts
    "qwen2-moe": (4,),  # a network that all tokens pass, gated
    "nemotron-3": (2,),
    "falcon-h1": (2,),  # attention beside a scan
    "qwen3-next": (2,),  # the delta rule
    "lfm2": (3,),
    "mamba2-biased-tied": (3,),  # a norm of all that the scan makes
    "mamba2": (3, 4),  # three groups among four ranks: not divided
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        write_decoder(name, folder)
        return folder

    return write


def rank_of(group: ThreadGroup) -> RankBackend:
    return RankBackend(ReferenceBackend(group), group.rank, group.ranks)


@pytest.mark.parametrize(("name", "ranks"), [(name, ranks) for name, counts in FAMILIES.items() for ranks in counts])
def test_all_ranks_have_what_one_would(name: str, ranks: int, written: Callable[[str], Path]) -> None:
    folder = written(name)
    whole = our_logits(folder, IDS, ReferenceBackend(), 8)
    for ours in on_ranks(ranks, lambda group: our_logits(folder, IDS, rank_of(group), 8)):
        assert np.abs(ours - whole).max() < BOUND * np.ptp(whole)


@pytest.mark.parametrize("name", ["llama-tied-biased", "deepseek-v3", "qwen3-next"])
def test_each_number_is_on_one_rank(name: str, written: Callable[[str], Path]) -> None:
    """Of the matrices, but for the few that are whole on all: embeddings on the first, and what is small or shared."""
    checkpoint = open_checkpoint(written(name))
    weights, ranks = checkpoint.tensors, 2
    parts = [RankBackend(ReferenceBackend(), rank, ranks).share(checkpoint.program(), weights) for rank in range(ranks)]
    held: Counter[str] = Counter()
    for program, shard in parts:
        for wanted in needs(program):
            source = wanted.partition("#")[0]
            held[source] += len(shard[wanted].data)
    whole = {name for name, count in held.items() if count > len(weights[name].data)}
    assert all(held[name] == len(weights[name].data) for name in held.keys() - whole)
    matrices = {name.split(".")[-1] for name in whole if len(weights[name].shape) > 1}
    on_all = {"embed", "router", "shared_gate", "q_a", "kv_a", "k", "v"}  # one head of K and V for all
    assert matrices <= on_all, matrices - on_all


@pytest.mark.parametrize("form", ["F32", "Q4_0", "Q4_K", "NVFP4", "I8"])
def test_parts_of_a_weight(form: str) -> None:
    rng, shape = np.random.default_rng(1), (6, 1024)
    data = rng.integers(0, 100, tensor_bytes(form, shape), np.uint8)
    scales = rng.random(6, np.float32) if form in ("NVFP4", "I8") else None
    tensor = Tensor("w", form, shape, data, scales)
    numbers = dequantise(tensor)
    for ranges in (((0, 256),), ((256, 1024),), ((0, 256), (512, 768)), ()):
        part = cut_of(tensor, Cut("w", "columns", ranges))
        expected = np.concatenate([numbers[:, a:b] for a, b in ranges] or [numbers], axis=1)
        assert part.shape == expected.shape
        np.testing.assert_array_equal(dequantise(part), expected)
    for ranges in (((1, 3),), ((0, 1), (2, 6))):
        part = cut_of(tensor, Cut("w", "rows", ranges))
        np.testing.assert_array_equal(dequantise(part), np.concatenate([numbers[a:b] for a, b in ranges]))


def network(inner: int, form: str) -> tuple[Program, dict[str, Tensor]]:
    b = ProgramBuilder()
    x = b.embed("embed", 64)
    up = b.linear(x, ["gate", "up"], 2 * inner)
    gated = b.gate(up.columns(0, inner), up.columns(inner, inner), "silu")
    made = b.add(b.linear(gated, ["down"], 64, biases=["down.bias"]), x)
    program = b.finish(b.linear(b.rmsnorm(made, None, 1e-5), ["head"], 50))
    shapes = {"embed": (50, 64), "gate": (inner, 64), "up": (inner, 64), "head": (50, 64), "down.bias": (64,)}
    rng = np.random.default_rng(2)
    weights = {
        name: Tensor(name, "F32", shape, rng.standard_normal(shape).astype(np.float32).view(np.uint8).reshape(-1))
        for name, shape in shapes.items()
    }
    down = rng.integers(0, 50, tensor_bytes(form, (64, inner)), np.uint8)
    return program, weights | {"down": Tensor("down", form, (64, inner), down)}


@pytest.mark.parametrize(("inner", "form", "parts"), [
    (192, "Q8_0", [32, 64, 32, 64]),  # six blocks
    (192, "NVFP4", [192, 192, 192, 192]),  # three
    (1024, "Q4_K", [256, 256, 256, 256]),
])  # fmt: skip
def test_no_block_is_cut(inner: int, form: str, parts: list[int]) -> None:
    program, weights = network(inner, form)
    for rank, columns in enumerate(parts):
        _, shard = RankBackend(ReferenceBackend(), rank, 4).share(program, weights)
        assert shard["down"].shape == (64, columns)
        assert shard["gate"].shape == shard["up"].shape == (columns, 64)


def test_ranks_meet_as_rarely_as_they_can() -> None:
    program, weights = network(192, "F32")
    first, second = (RankBackend(ReferenceBackend(), rank, 2).share(program, weights)[0] for rank in (0, 1))
    meetings = [type(op) for op in first.instructions if isinstance(op, AllReduce | AllGather | Broadcast)]
    assert meetings == [Broadcast, AllReduce, AllGather]
    assert [type(op) for op in first.instructions] == [
        Embed, Broadcast, Linear, Gate, Linear, Add, AllReduce, RmsNorm, Linear, AllGather,
    ]  # fmt: skip
    assert [type(op) for op in second.instructions] == [
        Broadcast, Linear, Gate, Linear, AllReduce, RmsNorm, Linear, AllGather,
    ]  # fmt: skip
    assert [op.biases for op in second.instructions if isinstance(op, Linear)][1] == ()


@pytest.mark.parametrize(("name", "ranks", "said"), [
    ("qwen2", 4, "4 GPUs cannot share a model whose attention has 6 heads over 3 of K and V"),
    ("mixtral-sliding", 4, "4 GPUs cannot share 3 experts"),
    ("llama", 8, "8 GPUs cannot share a model whose attention has 5 heads over 1"),
])  # fmt: skip
def test_what_cannot_be_shared(name: str, ranks: int, said: str, written: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(written(name))
    with pytest.raises(ModelError, match=said):
        RankBackend(ReferenceBackend(), 0, ranks).share(checkpoint.program(), checkpoint.tensors)


def test_adapters_are_divided_as_what_they_change() -> None:
    program, weights = network(192, "F32")
    rng = np.random.default_rng(3)

    def low_rank(name: str) -> LowRank:
        rows, columns = weights[name].shape
        sides = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, columns), (rows, 4)))
        down, up = (Tensor("", "F32", side.shape, side.view(np.uint8).reshape(-1)) for side in sides)
        return LowRank(down, up, 0.2)

    adaptation = {name: low_rank(name) for name in ("gate", "up", "down", "head")}
    tokens, rows = np.arange(6, dtype=np.int32), np.arange(7, dtype=np.int32)
    adapters = np.array([0, -1, 2, 2, -1, 0], np.int32)
    batch = StepBatch(tokens, tokens * 0, rows, np.zeros((6, 1), np.int32), tokens, adapters=adapters)

    def logits(backend: Backend) -> np.ndarray:
        executable = backend.compile(program, weights, Limits(6, 6, 6, 1, 1, "float32", 1))
        executable.load_adapter(0, adaptation)
        executable.load_adapter(1, adaptation)
        executable.drop_adapter(1)
        executable.load_adapter(2, {name: adaptation[name] for name in ("up", "down")})
        return executable.run(batch).copy()

    whole = logits(ReferenceBackend())
    for ours in on_ranks(3, lambda group: logits(rank_of(group))):
        assert np.abs(ours - whole).max() < BOUND * np.ptp(whole)
    with pytest.raises(ModelError, match="The adapter changes 'embed'"):
        rank = RankBackend(ReferenceBackend(None), 1, 2).compile(program, weights, Limits(6, 6, 6, 1, 1, "float32", 1))
        rank.load_adapter(0, {"embed": adaptation["head"]})


def test_the_first_rank_tells_what_it_does_before_it_does_it() -> None:
    program, weights = network(192, "F32")
    heard: list[Call] = []

    class Group(ThreadGroup):
        def broadcast(self, x: np.ndarray) -> None:
            heard.append(Call("met", ()))
            super().broadcast(x)

    backend = RankBackend(ReferenceBackend(Group(Meeting(1), 0, 1)), 0, 1, heard.append)
    executable = backend.compile(program, weights, Limits(6, 6, 6, 1, 1, "float32", 1))
    one = np.zeros(1, np.int32)
    inputs = np.zeros((1, 3), np.float32)
    executable.run(StepBatch(one, one, np.array([0, 1], np.int32), one[None], one, inputs=inputs))
    executable.drop_adapter(3)
    assert [call.method for call in heard] == ["run", "met", "drop_adapter"]
    assert pickle.loads(pickle.dumps(heard[0])).arguments[0].tokens == one
    assert heard[0].arguments[0].inputs is None, "they are the first rank's own"


def test_guesses_of_a_models_own_layer(tmp_path: Path) -> None:
    write_guessing("deepseek-v3", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    program = checkpoint.program(guesses=True)
    assert program.sequel is not None

    def passes(backend: Backend) -> list[np.ndarray]:
        model = backend.compile(program, checkpoint.tensors, Limits(8, 1, 8, 4, 4, "float32", 1))
        tokens, rows = np.array(IDS[:6], np.int32), np.arange(6, dtype=np.int32)
        table, starts = np.arange(4, dtype=np.int32)[None], np.array([0, 6], np.int32)
        made = [model.run(StepBatch(tokens, rows, starts, table, rows)).copy()]
        hidden = model.hidden.copy()
        logits, further = model.run_sequel(
            StepBatch(tokens[1:], rows[:5], starts - np.array([0, 1], np.int32), table, rows[:5], inputs=hidden[:5])
        )
        return [*made, hidden, logits.copy(), further.copy()]

    whole = passes(ReferenceBackend())
    for ours in on_ranks(2, lambda group: passes(rank_of(group))):
        for mine, right in zip(ours, whole, strict=True):
            assert np.abs(mine - right).max() < BOUND * np.ptp(right)


def test_a_model_that_hears(tmp_path: Path) -> None:
    """Its encoder too, whose attention has no cache; K and V that another instruction keeps."""
    write_whisper(tmp_path)
    chunks = (5, 36, HEARD + 1, HEARD + 8)
    whole = logits_of_sound(tmp_path, ReferenceBackend(), noise(2), chunks)
    for ours in on_ranks(2, lambda group: logits_of_sound(tmp_path, rank_of(group), noise(2), chunks)):
        assert np.abs(ours - whole).max() < BOUND * np.ptp(whole)
