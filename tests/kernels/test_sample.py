"""Sampling and log-probabilities on the CPU: the reference's choices, whatever the shape of the distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import compiled, distribution, may_choose, program_of

from tokenworks.kernels.backend import Executable, Float32, SampleBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend


@pytest.fixture(scope="module")
def ours() -> Executable:
    return compiled(CpuBackend(), program_of(4, lambda b, x: x), {"x": np.zeros((1, 4))})


@pytest.fixture(scope="module")
def oracle() -> Executable:
    return compiled(ReferenceBackend(), program_of(4, lambda b, x: x), {"x": np.zeros((1, 4))})


def how(rows: int, uniform: Float32, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
    def full(value: float, dtype: type = np.float32) -> np.ndarray:
        return np.full(rows, value, dtype)

    return SampleBatch(full(temperature), full(top_k, np.int32), full(top_p), full(min_p), uniform.astype(np.float32))


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(["plain", "peaked", "tied", "masked", "one", "wide"]),
    size=st.sampled_from([1, 2, 15, 16, 17, 1000, 4099]),
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 2.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 5000]),
    top_p=st.sampled_from([0.0, 0.1, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1e-7, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_draws_equal_the_definition(
    ours: Executable, kind: str, size: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = np.stack([distribution(kind, size, rng) for _ in range(4)])
    uniform = np.concatenate([rng.random(2), [0.0, 1 - 2**-24]]).astype(np.float32)
    tokens = ours.sample(rows.copy(), how(4, uniform, temperature, top_k, top_p, min_p))
    options = tuple(float(np.float32(x)) for x in (temperature, top_p, min_p))
    for row, token, u in zip(rows, tokens.tolist(), uniform.tolist(), strict=True):
        assert np.isfinite(row[token])
        assert may_choose(row, token, (options[0], top_k, options[1], options[2]), u), (row, token, u)


def test_draws_of_a_whole_vocabulary_follow_the_distribution(ours: Executable) -> None:
    rng = np.random.default_rng(1)
    logits = np.tile(distribution("plain", 49157, rng) * 3, (40, 1))
    uniform = rng.random(40).astype(np.float32)
    tokens = ours.sample(logits.copy(), how(40, uniform))
    for row, token, u in zip(logits, tokens.tolist(), uniform.tolist(), strict=True):
        assert may_choose(row, token, (1.0, 0, 1.0, 0.0), u)


@pytest.mark.parametrize("size", [1, 7, 16, 31, 49152, 262144])
def test_greedy_takes_the_lowest_id_of_a_tie(ours: Executable, size: int) -> None:
    rng = np.random.default_rng(size)
    logits = rng.standard_normal((3, size)).astype(np.float32)
    logits[1, rng.integers(0, size, 3)] = 9.0
    logits[2] = -np.inf
    np.testing.assert_array_equal(ours.sample(logits.copy(), how(3, np.zeros(3), 0.0)), logits.argmax(axis=1))


def test_rows_that_are_no_numbers_still_give_a_token(ours: Executable) -> None:
    tokens = ours.sample(np.full((2, 100), np.nan, np.float32), how(2, np.full(2, 0.5), top_k=5))
    assert ((tokens >= 0) & (tokens < 100)).all()


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["plain", "peaked", "tied", "masked"]),
    size=st.sampled_from([1, 2, 15, 16, 17, 1000, 4099]),
    top=st.sampled_from([0, 1, 5, 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_logprobs_equal_the_reference(
    ours: Executable, oracle: Executable, kind: str, size: int, top: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = np.stack([distribution(kind, size, rng) for _ in range(3)])
    before = logits.copy()
    chosen = rng.integers(0, size, 3).astype(np.int32)
    top = min(top, size)
    got, want = ours.logprobs(logits, chosen, top), oracle.logprobs(logits, chosen, top)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[2], want[2])
    np.testing.assert_allclose(got[3], want[3], rtol=1e-6, atol=1e-6)
