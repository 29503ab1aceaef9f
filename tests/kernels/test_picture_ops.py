"""What encoders of pictures and their decoders add to the table: inputs, injected rows, merged rows, places along axes,
windows, pauses, tokens that see those after them. On the CPU, against the reference."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from kernel_support import compiled, program_of, run, step

from tokenworks.kernels.backend import CacheType, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Pause, Program, ProgramBuilder, Value
from tokenworks.kernels.reference import ReferenceBackend

RANDOM = np.random.default_rng(11)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def both(program: Program, arrays: dict[str, np.ndarray], batch: StepBatch, **limits: object) -> np.ndarray:
    got = run(compiled(CpuBackend(), program, arrays, **limits), batch)
    want = run(compiled(ReferenceBackend(), program, arrays, **limits), batch)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return got


@pytest.mark.parametrize("width", [3, 16, 40])
def test_injected_rows_take_the_place_of_others_or_are_added(width: int) -> None:
    table, features = floats(40, width), floats(3, 2 * width)
    rows = np.array([1, 2, 8], np.int32)
    batch = replace(step([(range(5), 3), (range(7, 16), 0)]), features=features, feature_rows=rows)

    def body(b: ProgramBuilder, x: Value) -> Value:
        return b.inject(b.inject(x, 0, "replace"), width, "add")

    got = both(program_of(width, body), {"x": table}, batch)
    want = table[[*range(5), *range(7, 16)]]
    want[rows] = features[:, :width] + features[:, width:]
    np.testing.assert_array_equal(got, want)
    plain = run(compiled(CpuBackend(), program_of(width, body), {"x": table}), step([(range(5), 3)]))
    np.testing.assert_array_equal(plain, table[:5])


@pytest.mark.parametrize("how", ["concatenate", "mean"])
@pytest.mark.parametrize("width", [1, 6, 16, 33])
def test_merged_rows(width: int, how: str) -> None:
    inputs, weight = floats(24, width), floats(5, width * (4 if how == "concatenate" else 1))
    builder = ProgramBuilder()
    merged = builder.merge(builder.input(width), 4, how)  # type: ignore[arg-type]
    program = builder.finish(builder.linear(merged, ("w",), 5))
    got = both(program, {"w": weight}, replace(step([(range(24), 0)]), inputs=inputs))
    groups = inputs.reshape(6, 4, width)
    want = (groups.reshape(6, -1) if how == "concatenate" else groups.mean(axis=1)) @ weight.T
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_size", [4, 12, 64])
def test_places_along_axes(head_size: int) -> None:
    half = head_size // 2
    axes = tuple(i % 3 for i in range(half))
    arrays = {"x": floats(40, 2 * head_size), "f": 100.0 ** (-np.arange(half) / half)}
    program = program_of(2 * head_size, lambda b, x: b.rope(x, head_size, "f", axes=axes))
    batch = step([(range(30), 7)])
    places = RANDOM.integers(0, 5000, (3, 30)).astype(np.int32)
    got = both(program, arrays, replace(batch, axes=places))
    first = [p for p in range(half) if axes[p] == 1]
    angle = places[1][:, None] * arrays["f"].astype(np.float32)[first]
    x = arrays["x"][:30, :head_size]
    want = x[:, first] * np.cos(angle) - x[:, [p + half for p in first]] * np.sin(angle)
    np.testing.assert_allclose(got[:, first], want, rtol=1e-3, atol=2e-3)
    # All axes at the position, and no axes at all: the same bits.
    alike = np.tile(batch.positions, (3, 1))
    plain = run(compiled(CpuBackend(), program, arrays), batch)
    np.testing.assert_array_equal(both(program, arrays, replace(batch, axes=alike)), plain)


def attention(cached: bool, windows: bool = False, window: int = 0) -> Program:
    size = 16

    def body(b: ProgramBuilder, x: Value) -> Value:
        q, k, v = (x.columns(i * size, size) for i in range(3))
        return b.attend(
            q, k, v, heads=1, kv_heads=1, head_size=size, scale=0.3, cached=cached, windows=windows, window=window
        )

    return program_of(3 * size, body)


def test_windows_are_sequences_of_their_own() -> None:
    arrays = {"x": floats(300, 48)}
    batch = step([(range(300), 0)])
    starts = np.array([0, 1, 9, 150, 300], np.int32)
    got = both(attention(False, True), arrays, replace(batch, window_starts=starts))
    parts = [(range(a, b), 0) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    np.testing.assert_array_equal(got, run(compiled(CpuBackend(), attention(False), arrays), step(parts)))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("backend", [CpuBackend(), ReferenceBackend()], ids=lambda backend: backend.name)
def test_portions_of_an_attention_are_all_of_it(backend: CpuBackend | ReferenceBackend, threads: int) -> None:
    arrays, size = {"x": floats(300, 48)}, 16

    def body(b: ProgramBuilder, x: Value) -> Value:
        q, k, v = (x.columns(i * size, size) for i in range(3))
        out = None
        for portion in range(5):
            out = b.attend(
                q, k, v, heads=1, kv_heads=1, head_size=size, scale=0.3, cached=False, portion=(portion, 5), into=out
            )
            b.pause()
        assert out is not None
        return out

    batch = step([(range(3), 0), (range(3, 290), 0)])
    whole = run(compiled(backend, attention(False), arrays), batch)
    portions = compiled(backend, program_of(48, body), arrays, threads=threads)
    np.testing.assert_array_equal(run(portions, batch), whole)
    for part in range(portions.parts):
        got = portions.run(batch, part)
    np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("window", [0, 50])
def test_tokens_that_see_those_after_them(cache_dtype: CacheType, window: int) -> None:
    """Rows 20 .. 180 of a sequence see each other; whatever runs beside them and however the rest is cut, same bits."""
    arrays, program = {"x": floats(300, 48)}, attention(True, window=window)
    table = [list(range(30))[::-1]]
    ends = np.arange(1, 301, dtype=np.int32)
    ends[20:180] = 180
    tolerance = 1e-5 if cache_dtype == "float32" else 2e-2
    whole = replace(step([(range(300), 0)], table), ends=ends)
    got = run(compiled(CpuBackend(), program, arrays, cache_dtype=cache_dtype), whole)
    want = run(compiled(ReferenceBackend(), program, arrays, cache_dtype=cache_dtype), whole)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    causal = run(compiled(CpuBackend(), program, arrays, cache_dtype=cache_dtype), step([(range(300), 0)], table))
    assert np.abs(causal - got).max(axis=1)[20:150].min() > 1e-3
    np.testing.assert_array_equal(np.delete(causal, range(20, 180), axis=0), np.delete(got, range(20, 180), axis=0))
    in_pieces = compiled(CpuBackend(), program, arrays, cache_dtype=cache_dtype)
    rows = [
        run(in_pieces, replace(step([(range(a, b), a)], table), ends=ends[a:b]))
        for a, b in [(0, 11), (11, 190), (190, 300)]
    ]
    np.testing.assert_array_equal(np.concatenate(rows), got)


@pytest.mark.parametrize("backend", [CpuBackend(), ReferenceBackend()], ids=lambda backend: backend.name)
def test_a_step_in_parts_is_the_step(backend: CpuBackend | ReferenceBackend) -> None:
    width = 24
    arrays = {name: floats(width, width) for name in ("a", "b", "c")}

    def write(b: ProgramBuilder, pause: Callable[[], None]) -> Program:
        x = b.input(width)
        for name in arrays:
            x = b.add(x, b.activate(b.linear(x, (name,), width), "gelu"))
            pause()
        return b.finish(x)

    paused, whole = ProgramBuilder(), ProgramBuilder()
    parts, plain = write(paused, paused.pause), write(whole, lambda: None)
    assert sum(isinstance(each, Pause) for each in parts.instructions) == 3
    batch = replace(step([(range(9), 0)]), inputs=floats(9, width))
    want = run(compiled(backend, plain, arrays), batch)
    executable = compiled(backend, parts, arrays)
    assert executable.parts == 4
    for number in range(4):
        got = executable.run(batch, number)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(executable.run(batch), want)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"inputs": None}, "inputs"),
        ({"inputs": np.zeros((8, 3), np.float32)}, "inputs"),
        ({"window_starts": None}, "window_starts"),
        ({"window_starts": np.array([0, 4, 4, 8], np.int32)}, "window"),
        ({"axes": np.zeros((1, 8), np.int32)}, "axes"),
        ({"features": np.zeros((1, 3), np.float32), "feature_rows": np.array([0], np.int32)}, "features"),
        ({"features": np.zeros((1, 16), np.float32), "feature_rows": np.array([8], np.int32)}, "feature row"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(change: dict[str, object], complaint: str) -> None:
    b = ProgramBuilder()
    x = b.inject(b.rope(b.input(16), 16, "f", axes=(0, 1) * 4), 0, "add")
    program = b.finish(
        b.merge(b.attend(x, x, x, heads=1, kv_heads=1, head_size=16, scale=1.0, cached=False, windows=True), 4, "mean")
    )
    good = replace(
        step([(range(8), 0)]),
        inputs=floats(8, 16),
        window_starts=np.array([0, 4, 8], np.int32),
        axes=np.zeros((2, 8), np.int32),
    )
    executable = compiled(CpuBackend(), program, {"f": floats(8)})
    assert executable.run(good).shape == (2, 16)
    with pytest.raises(ValueError, match=complaint):
        executable.run(replace(good, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple"):
        seven = replace(step([(range(7), 0)]), inputs=floats(7, 16), window_starts=np.array([0, 7], np.int32))
        executable.run(seven)
