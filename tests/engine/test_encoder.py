"""Encoders: any inputs, in any order and number, give the vectors that each gives alone."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenworks.engine.encoder import EncoderEngine
from tokenworks.kernels.backend import Float32, Limits, StepBatch
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.messages import Embed, Embedded

VOCABULARY, WIDTH, LONGEST = 50, 16, 40
LIMITS = Limits(
    step_tokens=LONGEST, sequences=4, logit_rows=4, blocks=0, block_tokens=16, cache_dtype="float32", threads=1
)


def small_encoder() -> tuple[Program, dict[str, Tensor]]:
    rng = np.random.default_rng(2)
    shapes = {"embed": (VOCABULARY, WIDTH), "positions": (LONGEST, WIDTH), "qkv": (3 * WIDTH, WIDTH)}
    weights = {
        name: Tensor(name, "F32", shape, rng.standard_normal(shape).astype(np.float32).reshape(-1).view(np.uint8))
        for name, shape in shapes.items()
    }
    build = ProgramBuilder()
    x = build.add(build.embed("embed", WIDTH), build.embed("positions", WIDTH, index="position"))
    qkv = build.linear(x, ["qkv"], 3 * WIDTH)
    q, k, v = (qkv.columns(i * WIDTH, WIDTH) for i in range(3))
    x = build.add(x, build.attend(q, k, v, heads=2, kv_heads=2, head_size=8, scale=8**-0.5, cached=False))
    return build.finish(build.pool(x, "mean", normalise=True)), weights


class Counting:
    """Passes steps on, and keeps their sizes."""

    def __init__(self) -> None:
        program, weights = small_encoder()
        self.inner = ReferenceBackend().compile(program, weights, LIMITS)
        self.steps: list[tuple[int, int]] = []

    def run(self, batch: StepBatch) -> Float32:
        self.steps.append((len(batch.tokens), len(batch.row_starts) - 1))
        return self.inner.run(batch)


def engine() -> tuple[EncoderEngine, Counting]:
    executable = Counting()
    return EncoderEngine(executable, LIMITS, width=WIDTH, vocabulary=VOCABULARY), executable  # type: ignore[arg-type]


def run(encoder: EncoderEngine) -> list[Embedded]:
    answers: list[Embedded] = []
    while encoder.busy:
        answers += encoder.step()[0]
    return answers


def alone(ids: tuple[int, ...]) -> npt.NDArray[np.float32]:
    encoder, _ = engine()
    encoder.add(Embed("one", (ids,)))
    return np.frombuffer(run(encoder)[0].vectors, "<f4")


INPUTS = st.lists(
    st.lists(st.integers(0, VOCABULARY), min_size=1, max_size=LONGEST).map(tuple), max_size=8
).map(tuple)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.lists(INPUTS, max_size=6))
def test_every_request_gets_the_vectors_its_inputs_get_alone(requests: list[tuple[tuple[int, ...], ...]]) -> None:
    encoder, executable = engine()
    for number, inputs in enumerate(requests):
        encoder.add(Embed(str(number), inputs))
    answers = run(encoder)
    assert sorted(answer.request_id for answer in answers) == sorted(map(str, range(len(requests))))
    for answer in answers:
        inputs = requests[int(answer.request_id)]
        bad = [number for number, ids in enumerate(inputs) if VOCABULARY in ids]
        if bad:
            assert answer.error == f"input {bad[0]} has a token id outside the vocabulary of {VOCABULARY}"
            continue
        vectors = np.frombuffer(answer.vectors, "<f4").reshape(-1, answer.width)
        assert (answer.error, answer.width, len(vectors)) == (None, WIDTH, len(inputs))
        for ids, vector in zip(inputs, vectors, strict=True):
            np.testing.assert_allclose(alone(ids), vector, rtol=1e-6, atol=1e-6)
    assert all(tokens <= LIMITS.step_tokens and count <= LIMITS.sequences for tokens, count in executable.steps)


def test_short_requests_share_a_step_and_a_long_one_is_cut() -> None:
    encoder, executable = engine()
    told: list[tuple[str, ...]] = []
    encoder.on_begin = told.append
    for name in "abc":
        encoder.add(Embed(name, ((1, 2),)))
    encoder.add(Embed("long", ((1,) * LONGEST, (2,) * LONGEST)))
    done, step = encoder.step()
    assert [answer.request_id for answer in done] == ["a", "b", "c"]
    assert (step.stats.running, step.stats.waiting, step.share) == (0, 1, 6 / LIMITS.step_tokens)
    _, step = encoder.step()
    assert (step.stats.running, step.stats.waiting, step.share) == (1, 0, 1.0)
    assert told == [("a", "b", "c"), ("long",)]
    assert [answer.request_id for answer in run(encoder)] == ["long"]
    assert executable.steps == [(6, 3), (LONGEST, 1), (LONGEST, 1)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((), "input 1 has 0 tokens"),
        ((0,) * (LONGEST + 1), f"input 1 has {LONGEST + 1} tokens; from 1 to {LONGEST}"),
    ],
)
def test_inputs_that_cannot_be_encoded_are_named(bad: tuple[int, ...], words: str) -> None:
    encoder, executable = engine()
    encoder.add(Embed("bad", ((1, 2), bad)))
    (answer,) = run(encoder)
    assert answer.error is not None and words in answer.error
    assert executable.steps == []


def test_a_cancelled_request_is_forgotten_between_steps() -> None:
    encoder, _ = engine()
    encoder.add(Embed("long", ((1,) * LONGEST, (1,) * LONGEST)))
    encoder.step()
    encoder.cancel("long")
    encoder.cancel("unknown")
    assert not encoder.busy
