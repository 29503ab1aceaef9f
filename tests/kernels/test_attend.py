"""Attention on the CPU: equal to the reference, and the same bits however the work is cut."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from kernel_support import compiled, program_of, run, step
from numpy.random import Generator

from tokenworks.kernels.backend import Executable, Float32
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Program, ProgramBuilder, Value
from tokenworks.kernels.reference import ReferenceBackend

TOKENS = 700
"""Rows of the table that plays the model's activations: Q, K and V side by side."""


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_size: int
    window: int = 0
    softcap: float = 0.0
    block_tokens: int = 16
    cache_dtype: str = "float16"
    cached: bool = True
    sinks: float = 0.0
    """How large the heads' sinks are."""
    latent: int = 0
    """V is so many columns of K, and kv_heads is 1."""
    chunked: bool = False

    @property
    def width(self) -> int:
        return (self.heads + (1 if self.latent else 2) * self.kv_heads) * self.head_size

    @property
    def tolerance(self) -> float:
        """Absolute. With a cache of bytes the kernels, unlike the reference, round the weights of V to 15 bits."""
        return 1e-3 if self.cache_dtype == "int8" else 2e-5

    def program(self) -> Program:
        h, kv, d = self.heads, self.kv_heads, self.head_size
        if self.latent:
            return program_of(
                self.width,
                lambda b, x: b.attend_latent(
                    x.columns(0, h * d), x.columns(h * d, d), heads=h, head_size=d, latent=self.latent, scale=d**-0.5
                ),
            )
        return program_of(
            self.width,
            lambda b, x: b.attend(
                x.columns(0, h * d), x.columns(h * d, kv * d), x.columns((h + kv) * d, kv * d),
                heads=h, kv_heads=kv, head_size=d, scale=d**-0.5, window=self.window, softcap=self.softcap,
                cached=self.cached, sinks="sinks" if self.sinks else None, chunked=self.chunked,
            ),
        )  # fmt: skip

    def on(self, backend: object, table: Float32, threads: int = 2) -> Executable:
        arrays = {"x": table, "sinks": self.sinks * np.linspace(-1, 1, self.heads)}
        return compiled(
            backend, self.program(), arrays, block_tokens=self.block_tokens, cache_dtype=self.cache_dtype,
            threads=threads, logit_rows=TOKENS, blocks=4 * (TOKENS // self.block_tokens + 1), step_tokens=TOKENS,
        )  # fmt: skip

    def tables(self, sequences: int, rng: Generator) -> list[list[int]]:
        """Block tables that share no block, in no order."""
        each = TOKENS // self.block_tokens + 1
        return rng.permutation(4 * each)[: sequences * each].reshape(sequences, each).tolist()


SHAPES = [
    Shape(9, 3, 64),  # SmolLM2
    Shape(4, 1, 256, window=512),  # Gemma 3, a sliding layer
    Shape(9, 3, 64, cache_dtype="float32"),
    Shape(6, 6, 32),  # every head its own K and V
    Shape(7, 1, 16, softcap=3.0),
    Shape(14, 2, 64, window=5),  # a window shorter than a block
    Shape(5, 5, 20, window=33, cache_dtype="float32"),  # a head that fills no register
    Shape(3, 1, 8, softcap=1.5, window=130),
    Shape(4, 2, 24, block_tokens=5),
    Shape(8, 2, 32, block_tokens=32, window=100),
    Shape(8, 4, 128, block_tokens=1),
    Shape(100, 1, 16),  # more heads in a group than a task has rows
    Shape(9, 3, 64, cache_dtype="int8"),
    Shape(4, 1, 256, window=512, cache_dtype="int8"),
    Shape(6, 6, 32, softcap=3.0, cache_dtype="int8", block_tokens=32),
    Shape(14, 2, 96, window=5, cache_dtype="int8"),  # rotated in three parts
    Shape(5, 5, 20, window=33, cache_dtype="int8"),
    Shape(3, 1, 6, window=130, cache_dtype="int8", block_tokens=5),  # neither heads nor blocks in fours
    Shape(100, 1, 16, cache_dtype="int8", block_tokens=8),
    Shape(8, 2, 64, window=128, sinks=3.0),
    Shape(8, 2, 64, window=128, sinks=200.0, cache_dtype="float32"),  # heads that look at nothing
    Shape(8, 2, 64, sinks=3.0, cache_dtype="int8"),
    Shape(8, 2, 64, window=100, chunked=True),
    Shape(6, 6, 32, window=7, cache_dtype="int8", block_tokens=32, chunked=True),
    Shape(16, 1, 192, latent=128),
    Shape(4, 1, 96, latent=80, cache_dtype="float32"),
    Shape(7, 1, 26, latent=18, block_tokens=5),
    Shape(100, 1, 48, latent=40, cache_dtype="int8"),
    Shape(16, 1, 160, latent=128, cache_dtype="int8"),
    Shape(5, 1, 20, latent=11, cache_dtype="int8", block_tokens=32),  # neither part in fours, nor rotated
    Shape(7, 1, 26, latent=18, cache_dtype="int8", block_tokens=5),
    Shape(9, 3, 64, cache_dtype="bfloat16"),
    Shape(4, 2, 24, block_tokens=5, cache_dtype="bfloat16"),
    Shape(7, 1, 26, latent=18, cache_dtype="bfloat16"),
]


def table_of(shape: Shape, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((TOKENS, shape.width)).astype(np.float32)
    return table * rng.uniform(0.5, 2.0, (TOKENS, 1)).astype(np.float32)


def chunks(rng: Generator, tokens: int, largest: int) -> list[tuple[int, int]]:
    """(first, count) pieces that cover `tokens`."""
    found, at = [], 0
    while at < tokens:
        count = min(int(rng.integers(1, largest + 1)), tokens - at)
        found.append((at, count))
        at += count
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prefill_and_decode_equal_the_reference(shape: Shape) -> None:
    rng = np.random.default_rng(1)
    table = table_of(shape, 1)
    blocks = shape.tables(3, rng)
    ours, oracle = shape.on(CpuBackend(), table), shape.on(ReferenceBackend(), table)
    first = step([(range(0, 150), 0), (range(150, 153), 0)], blocks[:2])
    # A long chunk, a decode and a new sequence, in the same step; then decodes alone.
    second = step([(range(153, 180), 150), ([180], 3), (range(181, 190), 0)], blocks)
    third = step([([190], 177), ([191], 4), ([192], 9)], blocks)
    for batch in (first, second, third):
        np.testing.assert_allclose(run(ours, batch), run(oracle, batch), rtol=2e-5, atol=shape.tolerance)


@pytest.mark.parametrize("shape", [Shape(12, 12, 32, cached=False), Shape(3, 1, 20, cached=False)], ids=str)
def test_encoders_see_their_own_sequence_both_ways(shape: Shape) -> None:
    table = table_of(shape, 2)
    batch = step([(range(0, 140), 0), ([140], 0), (range(141, 200), 0)])
    got = run(shape.on(CpuBackend(), table), batch)
    np.testing.assert_allclose(got, run(shape.on(ReferenceBackend(), table), batch), rtol=2e-5, atol=2e-5)
    alone = run(shape.on(CpuBackend(), table, threads=1), step([(range(141, 200), 0)]))
    np.testing.assert_array_equal(got[141:], alone)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_cut_into_steps_does_not_show(shape: Shape, threads: int) -> None:
    tokens = 300 if shape.heads * shape.head_size < 1024 else 140
    table = table_of(shape, 3)
    rng = np.random.default_rng(threads)
    blocks = shape.tables(3, rng)
    whole = run(shape.on(CpuBackend(), table, threads=2), step([(range(tokens), 0)], blocks[:1]))

    one_by_one = shape.on(CpuBackend(), table, threads)
    for position in range(tokens):
        got = run(one_by_one, step([([position], position)], blocks[1:2]))
        np.testing.assert_array_equal(got[0], whole[position])

    # Random chunks beside another sequence that does as it likes.
    mixed = shape.on(CpuBackend(), table, threads)
    other = 0
    for first, count in chunks(rng, tokens, 60):
        beside = int(rng.integers(1, 40))
        beside = min(beside, TOKENS - other)
        parts = [(range(other, other + beside), other), (range(first, first + count), first)]
        got = run(mixed, step(parts, [blocks[0], blocks[2]]))
        np.testing.assert_array_equal(got[beside:], whole[first : first + count])
        other = (other + beside) % (TOKENS - 50)
        if other < beside:
            other = 0


def test_a_long_context_alone_equals_the_reference_and_a_batch() -> None:
    shape = Shape(9, 3, 64, cache_dtype="float32")
    table = table_of(shape, 4)
    blocks = shape.tables(4, np.random.default_rng(4))
    ours, oracle = shape.on(CpuBackend(), table), shape.on(ReferenceBackend(), table)
    fill = step([(range(TOKENS - 1), 0)], blocks[:1])
    np.testing.assert_allclose(run(ours, fill), run(oracle, fill), rtol=2e-5, atol=2e-5)
    last = step([([TOKENS - 1], TOKENS - 1)], blocks[:1])
    alone = run(ours, last)
    np.testing.assert_allclose(alone, run(oracle, last), rtol=2e-5, atol=2e-5)
    crowd = [([i], 0) for i in range(30)]
    together = run(ours, step([([TOKENS - 1], TOKENS - 1), *crowd], [blocks[0], *([b] for b in blocks[1][:30])]))
    np.testing.assert_array_equal(together[0], alone[0])


@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("latent", [0, 12])
def test_what_an_earlier_sequence_left_in_a_block_is_not_seen(cache_dtype: str, latent: int) -> None:
    shape = Shape(2, 1, 16, cache_dtype=cache_dtype, latent=latent)
    table = table_of(shape, 5)
    table[0], table[6] = np.nan, np.inf
    ours = shape.on(CpuBackend(), table)
    run(ours, step([([0] * 8 + [6] * 8, 0)], [[3]]))
    clean = run(ours, step([(range(1, 6), 0)], [[4]]))
    reused = run(ours, step([(range(1, 6), 0)], [[3]]))
    np.testing.assert_array_equal(clean, reused)


@pytest.mark.parametrize(("cache_dtype", "factor"), [("float16", 1e6), ("bfloat16", np.inf)])
def test_values_too_large_for_the_cache_saturate(cache_dtype: str, factor: float) -> None:
    shape = Shape(2, 1, 16, cache_dtype=cache_dtype)
    table = table_of(shape, 6)
    table[2, 3 * 16 :] *= factor
    got = run(shape.on(CpuBackend(), table), step([(range(6), 0)], [[0]]))
    assert np.isfinite(got).all()


def test_bytes_stand_a_few_dimensions_of_keys_that_are_much_larger() -> None:
    """As models with biases on their keys have them. Without turning K and q the error is 0.09, with it 0.03."""
    exact, rounded = (Shape(9, 3, 64, cache_dtype=dtype) for dtype in ("float32", "int8"))
    table = table_of(exact, 7)
    keys = table[:, 9 * 64 : 12 * 64].reshape(TOKENS, 3, 64)
    keys[:, :, [5, 40]] += 60  # the same for all positions, so that softmax sees only the rest
    batch = step([(range(200), 0)], exact.tables(1, np.random.default_rng(7)))
    error = run(rounded.on(CpuBackend(), table), batch) - run(exact.on(CpuBackend(), table), batch)
    assert np.sqrt((error**2).mean()) < 0.04


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[5], SHAPES[12], SHAPES[16]], ids=str)
def test_what_another_instruction_stored_is_read_by_all_rows_or_some(shape: Shape) -> None:
    """A second attention reads the first one's cache: all rows, then rows that were selected, whose bits are those that
    they have among all."""
    h, kv, d = shape.heads, shape.kv_heads, shape.head_size
    how = {"heads": h, "kv_heads": kv, "head_size": d, "scale": d**-0.5, "window": shape.window}
    frequencies = 100.0 ** (-np.arange(d // 2) / (d // 2))

    def program(select: bool) -> Program:
        def body(b: ProgramBuilder, x: Value) -> Value:
            k, v = x.columns(h * d, kv * d), x.columns((h + kv) * d, kv * d)
            b.attend(x.columns(0, h * d), k, v, **how)
            q = b.scale(x.columns(0, h * d), -1.5)
            q = b.rope(b.select_rows(q) if select else q, d, "f")
            return b.attend(q, None, None, source=0, **how)

        return program_of(shape.width, body)

    table = table_of(shape, 6)
    rng = np.random.default_rng(7)
    tables = shape.tables(3, rng)
    batch = step([(range(0, 40), 0), (range(100, 260), 0), (range(300, 303), 0)], tables)
    changes = {
        "block_tokens": shape.block_tokens,
        "cache_dtype": shape.cache_dtype,
        "blocks": 4 * (700 // shape.block_tokens + 1),
    }
    arrays = {"x": table, "f": frequencies}
    whole, want = (
        run(compiled(backend(), program(False), arrays, **changes), batch) for backend in (CpuBackend, ReferenceBackend)
    )
    np.testing.assert_allclose(whole, want, rtol=0, atol=2 * shape.tolerance)
    for rows in ([39, 199, 202], [0, 1, 2, 17, 38, 39, 40, 41, 120, 200, 201], []):
        some = replace(batch, logit_rows=np.array(rows, np.int32))
        got = run(compiled(CpuBackend(), program(True), arrays, **changes), some)
        np.testing.assert_array_equal(got, whole[rows])
        reference = run(compiled(ReferenceBackend(), program(True), arrays, **changes), some)
        np.testing.assert_allclose(reference, want[rows], rtol=0, atol=1e-6)


def test_selected_rows_must_ascend() -> None:
    program = program_of(
        24,
        lambda b, x: (
            b.attend(x.columns(0, 8), x.columns(8, 8), x.columns(16, 8), heads=1, kv_heads=1, head_size=8, scale=1.0),
            b.attend(b.select_rows(x.columns(0, 8)), None, None, heads=1, kv_heads=1, head_size=8, scale=1.0, source=0),
        )[1],
    )
    executable = compiled(CpuBackend(), program, {"x": np.ones((9, 24))})
    batch = replace(step([(range(9), 0)], [[0]]), logit_rows=np.array([4, 2], np.int32))
    with pytest.raises(ValueError, match="ascend"):
        executable.run(batch)


def test_latents_of_bytes_stand_columns_that_are_much_larger() -> None:
    """Rotary ones beside the latent, and one of the latent beside the others, in K as well as in what is read."""
    exact, rounded = (Shape(16, 1, 160, latent=128, cache_dtype=dtype) for dtype in ("float32", "int8"))
    table = table_of(exact, 8)
    table[:, 16 * 160 : 16 * 160 + 32] *= 8
    table[:, : 16 * 160].reshape(TOKENS, 16, 160)[..., :32] /= 8
    table[:, 16 * 160 + 77] += 20
    batch = step([(range(200), 0)], exact.tables(1, np.random.default_rng(8)))
    want = run(exact.on(CpuBackend(), table), batch)
    error = run(rounded.on(CpuBackend(), table), batch) - want
    assert np.sqrt((error**2).mean()) < 0.02
