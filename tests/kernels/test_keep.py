"""K and V that a sequence begins with: kept by one part of a program, read by another; equal to the reference, and the
same bits however the work is cut."""

import numpy as np
import pytest
from kernel_support import compiled, run, step

from tokenworks.kernels.backend import CacheType, Executable, Float32, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Program, ProgramBuilder
from tokenworks.kernels.reference import ReferenceBackend

COUNT = 150
"""Positions that are kept."""
HEADS, SIZE, TOKENS = 3, 20, 400
WIDTH = 3 * HEADS * SIZE
BLOCKS = [[*range(40)], [*range(79, 39, -1)]]


def program() -> Program:
    """[R, 2 * heads * size]: what rows read of the tokens behind the first COUNT, and of those."""
    b, each = ProgramBuilder(), HEADS * SIZE
    x = b.embed("x", WIDTH)
    layer = b.keep(x.columns(each, each), x.columns(2 * each, each), kv_heads=HEADS, head_size=SIZE)
    b.pause()
    x = b.embed("x", WIDTH)
    q, k, v = (x.columns(i * each, each) for i in range(3))
    both = b.buffer(2 * each)
    how = {"heads": HEADS, "kv_heads": HEADS, "head_size": SIZE, "scale": SIZE**-0.5, "source": layer}
    b.attend(q, k, v, **how, begin=COUNT, into=both.columns(0, each))  # type: ignore[arg-type]
    b.attend(q, None, None, **how, end=COUNT, into=both.columns(each, each))  # type: ignore[arg-type]
    return b.finish(b.select_rows(both))


def on(backend: object, dtype: CacheType, threads: int = 2, block_tokens: int = 16) -> Executable:
    table = np.random.default_rng(2).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    how = {"cache_dtype": dtype, "threads": threads, "block_tokens": block_tokens}
    return compiled(backend, program(), {"x": table}, **how)  # type: ignore[arg-type]


def keep(executable: Executable, *cuts: int, sequence: int = 0) -> None:
    for begin, end in zip([0, *cuts], [*cuts, COUNT], strict=True):
        ids = range(200 * sequence + begin, 200 * sequence + end)
        executable.run(step([(ids, begin)], [BLOCKS[sequence]]), 0)


def read(executable: Executable, batch: StepBatch) -> Float32:
    return executable.run(batch, 1).copy()


@pytest.mark.parametrize("block_tokens", [16, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_equal_to_the_reference(dtype: CacheType, block_tokens: int) -> None:
    ours, oracle = (on(backend, dtype, block_tokens=block_tokens) for backend in (CpuBackend(), ReferenceBackend()))
    for executable in (ours, oracle):
        keep(executable, 11, 120)
        keep(executable, sequence=1)
    for batch in (
        step([(range(150, 170), COUNT), (range(350, 353), COUNT)], BLOCKS),
        step([([170], COUNT + 20), ([353], COUNT + 3)], BLOCKS),
    ):
        tolerance = 1e-3 if dtype == "int8" else 2e-5
        np.testing.assert_allclose(read(ours, batch), read(oracle, batch), rtol=2e-5, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_cut_into_steps_does_not_show(dtype: CacheType, threads: int) -> None:
    whole = on(CpuBackend(), dtype)
    keep(whole)
    want = read(whole, step([(range(150, 190), COUNT)], BLOCKS[:1]))
    cut = on(CpuBackend(), dtype, threads)
    keep(cut, 1, 64, 149)
    keep(cut, sequence=1)
    for at in range(0, 40, 5):
        tokens, beside = range(150 + at, 155 + at), [350 + at // 5]
        got = read(cut, step([(tokens, COUNT + at), (beside, COUNT + at // 5)], BLOCKS))
        np.testing.assert_array_equal(got[:5], want[at : at + 5])


def test_a_token_among_what_is_kept_is_refused() -> None:
    ours = on(CpuBackend(), "float32")
    keep(ours)
    with pytest.raises(ValueError, match="before what it reads"):
        run(ours, step([(range(3), COUNT - 1)], BLOCKS[:1]))
