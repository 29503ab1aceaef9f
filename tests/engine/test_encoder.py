"""Encoders: any inputs, in any order and number, give the vectors that each gives alone."""

import numpy as np
import pytest

from tokenworks.engine.encoder import Encoder
from tokenworks.kernels.backend import Float32, Limits, StepBatch
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import InvalidRequest

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


def test_each_input_gets_the_vector_it_gets_alone() -> None:
    executable = Counting()
    encoder = Encoder(executable, LIMITS, width=WIDTH, vocabulary=VOCABULARY)  # type: ignore[arg-type]
    rng = np.random.default_rng(4)
    inputs = [rng.integers(0, VOCABULARY, length).tolist() for length in (3, LONGEST, 1, 7, 7, 2, 30, 12, 1, 1, 1, 1)]
    together = encoder.embed(inputs)
    assert together.dtype == np.float32
    assert sum(tokens for tokens, _ in executable.steps) == sum(map(len, inputs))
    assert all(tokens <= LIMITS.step_tokens and count <= LIMITS.sequences for tokens, count in executable.steps)
    assert len(executable.steps) < len(inputs) / 2
    for tokens, vector in zip(inputs, together, strict=True):
        np.testing.assert_allclose(encoder.embed([tokens])[0], vector, rtol=1e-6, atol=1e-6)
    assert encoder.embed([]).shape == (0, WIDTH)


def test_inputs_that_cannot_be_encoded_are_named() -> None:
    encoder = Encoder(Counting(), LIMITS, width=WIDTH, vocabulary=VOCABULARY)  # type: ignore[arg-type]
    for bad, words in [
        ([], "input 1 has 0 tokens"),
        ([0] * (LONGEST + 1), f"input 1 has {LONGEST + 1} tokens; from 1 to {LONGEST}"),
        ([VOCABULARY], "input 1 has a token id outside"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            encoder.embed([[1, 2], bad])
