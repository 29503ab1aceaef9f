"""Whole small programs, drawn at random, on the CPU backend against the reference: steps in any order, any cut."""

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_support import compiled, run, step

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Activation, Program, ProgramBuilder
from tokenworks.kernels.reference import ReferenceBackend

VOCABULARY = 50


@dataclass(frozen=True)
class Decoder:
    """The choices in which the decoders of models/ differ."""

    layers: int
    kv_heads: int
    group: int
    head_size: int
    inner: int
    activation: Activation
    window: int
    softcap: float
    qk_norm: bool
    post_norms: bool
    block_tokens: int

    @property
    def width(self) -> int:
        return 32

    def write(self) -> tuple[Program, dict[str, np.ndarray]]:
        rng = np.random.default_rng(7)
        weights: dict[str, np.ndarray] = {}

        def weight(*shape: int) -> str:
            name = f"w{len(weights)}"
            weights[name] = rng.standard_normal(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3) + (
                1.0 if len(shape) == 1 else 0.0
            )
            return name

        b = ProgramBuilder()
        heads, size = self.kv_heads * self.group, self.head_size
        weights["x"] = rng.standard_normal((VOCABULARY, self.width))
        weights["f"] = 100.0 ** (-np.arange(size // 2) / (size // 2))
        x = b.embed("x", self.width, scale=1.5)
        for layer in range(self.layers):
            y = b.rmsnorm(x, weight(self.width), 1e-6)
            names = [weight(heads * size, self.width), *(weight(self.kv_heads * size, self.width) for _ in "kv")]
            qkv = b.linear(y, names, (heads + 2 * self.kv_heads) * size, biases=[weight(heads * size), None, None])
            q = qkv.columns(0, heads * size)
            k = qkv.columns(heads * size, self.kv_heads * size)
            v = qkv.columns((heads + self.kv_heads) * size, self.kv_heads * size)
            if self.qk_norm:
                q, k = (b.rmsnorm(part, weight(size), 1e-6, group=size) for part in (q, k))
            q, k = b.rope(q, size, "f"), b.rope(k, size, "f")
            y = b.attend(
                q, k, v, heads=heads, kv_heads=self.kv_heads, head_size=size, scale=size**-0.5,
                window=self.window if layer % 2 else 0, softcap=self.softcap,
            )  # fmt: skip
            y = b.linear(y, [weight(self.width, heads * size)], self.width)
            if self.post_norms:
                y = b.rmsnorm(y, weight(self.width), 1e-6)
            x = b.add(x, y)
            y = b.rmsnorm(x, weight(self.width), 1e-6)
            both = b.linear(y, [weight(self.inner, self.width), weight(self.inner, self.width)], 2 * self.inner)
            y = b.gate(both.columns(0, self.inner), both.columns(self.inner, self.inner), self.activation)
            x = b.add(x, b.linear(y, [weight(self.width, self.inner)], self.width))
        x = b.linear(b.rmsnorm(b.select_rows(x), weight(self.width), 1e-6), ["x"], VOCABULARY)
        return b.finish(b.softcap(x, 5.0) if self.softcap else x), weights


decoders = st.builds(
    Decoder,
    layers=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_size=st.sampled_from([4, 16, 18, 32]),
    inner=st.sampled_from([8, 33, 64]),
    activation=st.sampled_from(["silu", "gelu_tanh", "gelu"]),
    window=st.sampled_from([0, 1, 7, 40]),
    softcap=st.sampled_from([0.0, 2.0]),
    qk_norm=st.booleans(),
    post_norms=st.booleans(),
    block_tokens=st.sampled_from([1, 7, 16]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(decoder=decoders, seed=st.integers(0, 2**32 - 1), threads=st.integers(1, 3))
def test_any_decoder_in_any_steps(decoder: Decoder, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    program, weights = decoder.write()
    sequences, longest = 3, 64
    columns = longest // decoder.block_tokens + 1
    options = {"block_tokens": decoder.block_tokens, "blocks": sequences * columns}
    ours = compiled(CpuBackend(), program, weights, threads=threads, **options)
    again = compiled(CpuBackend(), program, weights, threads=2, **options)
    oracle = compiled(ReferenceBackend(), program, weights, **options)
    tables = rng.permutation(sequences * columns).reshape(sequences, columns).tolist()
    texts = rng.integers(0, VOCABULARY, (sequences, longest)).tolist()
    seen: list[list[np.ndarray]] = [[], [], []]
    done = [0, 0, 0]
    while any(count < longest for count in done):
        parts, which = [], []
        for s in rng.permutation(sequences):
            count = min(int(rng.choice([0, 1, 1, 5, 30])), longest - done[s])
            if count:
                parts.append((texts[s][done[s] : done[s] + count], done[s]))
                which.append(s)
                done[s] += count
        if not parts:
            continue
        batch = step(parts, [tables[s] for s in which])
        got = run(ours, batch)
        np.testing.assert_allclose(got, run(oracle, batch), rtol=1e-4, atol=1e-4)
        for s, begin, end in zip(which, batch.row_starts[:-1], batch.row_starts[1:], strict=True):
            seen[s].extend(got[begin:end])
    for s in range(sequences):
        np.testing.assert_array_equal(np.stack(seen[s]), run(again, step([(texts[s], 0)], [tables[s]])))
