"""The oracle itself, held to torch: an implementation that shares no line with it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from tokenworks.kernels.backend import Limits, SampleBatch, StepBatch
from tokenworks.kernels.program import ProgramBuilder
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.reference.attention import in_fp8
from tokenworks.kernels.reference.elementwise import activation
from tokenworks.kernels.reference.sampling import sample_row
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

LIMITS = Limits(step_tokens=64, sequences=4, logit_rows=64, blocks=16, block_tokens=4, cache_dtype="float32", threads=1)


def tensor(name: str, array: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(array, np.float32)
    return Tensor(name, "F32", array.shape, array.reshape(-1).view(np.uint8))


def tensors(**arrays: np.ndarray) -> dict[str, Tensor]:
    return {name: tensor(name, array) for name, array in arrays.items()}


def one_sequence(tokens: int) -> StepBatch:
    rows = np.arange(tokens, dtype=np.int32)
    table = np.arange(16, dtype=np.int32)[None, ::-1].copy()
    return StepBatch(rows, rows, np.array([0, tokens], np.int32), table, rows)


@pytest.mark.parametrize(("window", "cached"), [(0, True), (3, True), (0, False)])
def test_attention_is_torchs(window: int, cached: bool) -> None:
    heads, kv_heads, size, tokens = 6, 2, 8, 11
    rng = np.random.default_rng(1)
    x = rng.standard_normal((tokens, (heads + 2 * kv_heads) * size))
    b = ProgramBuilder()
    qkv = b.embed("x", x.shape[1])
    q = qkv.columns(0, heads * size)
    k = qkv.columns(heads * size, kv_heads * size)
    v = qkv.columns((heads + kv_heads) * size, kv_heads * size)
    program = b.finish(
        b.attend(q, k, v, heads=heads, kv_heads=kv_heads, head_size=size, scale=0.3, window=window, cached=cached)
    )
    got = ReferenceBackend().compile(program, tensors(x=x), LIMITS).run(one_sequence(tokens))

    tq, tk, tv = (
        torch.tensor(part.reshape(tokens, -1, size)).transpose(0, 1)
        for part in np.split(x, [heads * size, (heads + kv_heads) * size], axis=1)
    )
    ago = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
    seen = (ago >= 0) & (ago < (window or tokens)) if cached else torch.ones_like(ago, dtype=torch.bool)
    want = F.scaled_dot_product_attention(tq[None], tk[None], tv[None], seen, scale=0.3, enable_gqa=True)
    np.testing.assert_allclose(got, want[0].transpose(0, 1).reshape(tokens, -1), rtol=1e-5, atol=1e-6)


def test_norms_linear_and_gate_are_torchs() -> None:
    rng = np.random.default_rng(2)
    w = {
        "x": rng.standard_normal((9, 12)),
        "norm": rng.standard_normal(12),
        "head_norm": rng.standard_normal(4),
        "bias": rng.standard_normal(12),
        "up": rng.standard_normal((20, 12)),
        "gate": rng.standard_normal((20, 12)),
        "up_bias": rng.standard_normal(20),
    }
    b = ProgramBuilder()
    x = b.rmsnorm(b.embed("x", 12), "norm", 1e-5)
    x = b.layernorm(b.rmsnorm(x, "head_norm", 1e-6, group=4), "norm", "bias", 1e-5)
    both = b.linear(x, ["gate", "up"], 40, biases=[None, "up_bias"])
    program = b.finish(b.softcap(b.gate(both.columns(0, 20), both.columns(20, 20), "silu"), 2.0))
    got = ReferenceBackend().compile(program, tensors(**w), LIMITS).run(one_sequence(9))

    t = {name: torch.tensor(array) for name, array in w.items()}
    tx = F.rms_norm(t["x"], (12,), t["norm"], 1e-5)
    tx = F.rms_norm(tx.reshape(9, 3, 4), (4,), t["head_norm"], 1e-6).reshape(9, 12)
    tx = F.layer_norm(tx, (12,), t["norm"], t["bias"], 1e-5)
    want = F.silu(tx @ t["gate"].T) * (tx @ t["up"].T + t["up_bias"])
    np.testing.assert_allclose(got, 2.0 * torch.tanh(want / 2.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "theirs"), [("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))]
)
def test_activations_are_torchs(kind: str, theirs: object) -> None:
    x = np.linspace(-12, 12, 999)
    np.testing.assert_allclose(activation(kind, x), theirs(torch.tensor(x)), rtol=1e-12, atol=1e-15)


def test_rope_turns_each_pair_by_its_angle() -> None:
    b = ProgramBuilder()
    program = b.finish(b.rope(b.embed("x", 4), 4, "frequencies"))
    weights = tensors(x=np.tile([1.0, 0.0, 0.0, 1.0], (3, 1)), frequencies=np.array([1.0, 0.5]))
    got = ReferenceBackend().compile(program, weights, LIMITS).run(one_sequence(3))
    p = np.arange(3.0)
    want = np.stack([np.cos(p), -np.sin(p / 2), np.sin(p), np.cos(p / 2)], axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_pool_and_position_embeddings() -> None:
    b = ProgramBuilder()
    x = b.add(b.embed("tokens", 2), b.embed("positions", 2, index="position", scale=2.0))
    x = b.add(x, b.embed("kind", 2, index="zero"))
    program = b.finish(b.pool(x, "mean", normalise=True))
    weights = tensors(tokens=np.eye(2) * 3, positions=np.ones((4, 2)), kind=np.array([[1.0, 2.0]]))
    batch = StepBatch(
        np.array([0, 1, 1], np.int32), np.array([0, 1, 0], np.int32), np.array([0, 2, 3], np.int32),
        np.zeros((2, 1), np.int32), np.zeros(0, np.int32),
    )  # fmt: skip
    got = ReferenceBackend().compile(program, weights, LIMITS).run(batch)
    rows = np.array([[3 + 2 + 1, 2 + 2], [2 + 1, 3 + 2 + 2], [2 + 1, 3 + 2 + 2]])
    want = np.stack([rows[:2].mean(axis=0), rows[2]])
    np.testing.assert_allclose(got, want / np.linalg.norm(want, axis=1, keepdims=True), rtol=1e-6)


def test_sampling_draws_the_filtered_distribution() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal(40).astype(np.float32) * 2
    logits[5] = -np.inf
    temperature, top_k, top_p, min_p = 0.8, 12, 0.9, 0.05
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64) / temperature, 0).numpy()
    best = np.argsort(-p)[:top_k]
    q = p[best] / p[best].sum()
    best = best[: np.searchsorted(np.cumsum(q), top_p) + 1]
    best = best[p[best] >= min_p * p.max()]
    want = np.zeros(40)
    want[best] = p[best] / p[best].sum()
    draws = [sample_row(logits, temperature, top_k, top_p, min_p, u) for u in (np.arange(20000) + 0.5) / 20000]
    np.testing.assert_allclose(np.bincount(draws, minlength=40) / 20000, want, atol=1e-4)


def test_greedy_takes_the_lowest_id_of_a_tie_and_logprobs_rank_it_first() -> None:
    logits = np.array([[1.0, 3.0, 2.0, 3.0]], np.float32)
    b = ProgramBuilder()
    executable = ReferenceBackend().compile(b.finish(b.embed("x", 4)), tensors(x=np.zeros((1, 4))), LIMITS)
    zero = np.zeros(1, np.float32)
    how = SampleBatch(zero, np.zeros(1, np.int32), zero + 1, zero, zero)
    assert executable.sample(logits, how).tolist() == [1]
    value, rank, top, top_values = executable.logprobs(logits, np.array([3], np.int32), 3)
    want = torch.log_softmax(torch.tensor(logits[0]), 0).numpy()
    assert rank.tolist() == [2] and top.tolist() == [[1, 3, 2]]
    np.testing.assert_allclose(value, want[[3]], rtol=1e-6)
    np.testing.assert_allclose(top_values[0], want[[1, 3, 2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({}, "no weight 'w'"),
        ({"w": np.zeros((4, 3))}, r"'w' has shape \[4, 3\]; expected \[any, 2\]"),
        ({"w": np.zeros((5, 2))}, "make 5 output features; expected 4"),
        ({"w": np.zeros((4, 2)), "b": np.zeros(3)}, r"'b' has shape \[3\]; 'w' needs \[4\]"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(weights: dict[str, np.ndarray], word: str) -> None:
    b = ProgramBuilder()
    program = b.finish(b.linear(b.embed("x", 2), ["w"], 4, biases=["b"]))
    weights = {"x": np.zeros((1, 2)), "b": np.zeros(4)} | weights
    with pytest.raises(ModelError, match=word):
        ReferenceBackend().compile(program, tensors(**weights), LIMITS)


def test_fp8_of_the_cache_is_torchs() -> None:
    x = np.random.default_rng(0).normal(0, 1, 4000) * 10.0 ** np.random.default_rng(1).integers(-4, 4, 4000)
    rounded = torch.from_numpy(x.astype(np.float32)).clamp(-448, 448).to(torch.float8_e4m3fn).double().numpy()
    np.testing.assert_array_equal(in_fp8(x), rounded)
