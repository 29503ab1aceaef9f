"""The CPU's row-wise operations against the reference, at widths that fill registers and widths that do not."""

import numpy as np
import pytest
from kernel_support import compiled, program_of, run, step

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import Program
from tokenworks.kernels.reference import ReferenceBackend

WIDTHS = [2, 6, 16, 62, 64, 96, 576]
ROWS = [1, 3, 40]


def check(program: Program, arrays: dict[str, np.ndarray], rows: int, rtol: float = 3e-6, first: int = 0) -> None:
    """Equal to the reference; and a row's bits do not depend on its neighbours or on the threads."""
    batch = step([(range(rows), first)])
    got = run(compiled(CpuBackend(), program, arrays), batch)
    want = run(compiled(ReferenceBackend(), program, arrays), batch)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * float(np.abs(want).max()) / 10)
    if len(got) == rows:
        last = step([([rows - 1], first + rows - 1)])
        alone = run(compiled(CpuBackend(), program, arrays, threads=1), last)
        np.testing.assert_array_equal(alone[0], got[-1])


def rows_of(width: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((40, width)) * scale


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms(width: int, rows: int) -> None:
    arrays = {"x": rows_of(width, 1) + 5.0, "w": rows_of(width, 2)[0], "b": rows_of(width, 3)[0]}
    check(program_of(width, lambda b, x: b.rmsnorm(x, "w", 1e-5)), arrays, rows)
    check(program_of(width, lambda b, x: b.layernorm(x, "w", "b", 1e-12)), arrays, rows, rtol=1e-5)
    group = width // 2
    halves = arrays | {"g": rows_of(group, 4)[0]}
    check(program_of(width, lambda b, x: b.rmsnorm(x, "g", 1e-6, group=group)), halves, rows)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "gelu_quick", "sigmoid", "none"])
@pytest.mark.parametrize("width", WIDTHS)
def test_gate_and_activate(width: int, kind: str) -> None:
    arrays = {"x": rows_of(2 * width, 5)}
    check(program_of(2 * width, lambda b, x: b.gate(x.columns(0, width), x.columns(width, width), kind)), arrays, 40)
    check(program_of(2 * width, lambda b, x: b.activate(x.columns(width, width), kind)), arrays, 40)


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "gelu_quick", "sigmoid"])
def test_activations_are_accurate_everywhere(kind: str) -> None:
    """Relative accuracy, also far out on the left where they vanish and close to zero."""
    x = np.concatenate([np.linspace(-12, 12, 30_000), np.geomspace(1e-30, 1, 5000), -np.geomspace(1e-30, 1, 5000)])
    x = np.concatenate([x, [0.0, 1e4, -1e4, 3e38, -3e38]]).astype(np.float32).reshape(5, -1)
    program = program_of(x.shape[1], lambda b, v: b.activate(v, kind))
    got = run(compiled(CpuBackend(), program, {"x": x}), step([(range(5), 0)]))
    with np.errstate(over="ignore", invalid="ignore"):
        want = run(compiled(ReferenceBackend(), program, {"x": x}), step([(range(5), 0)]))
    # gelu's own definition, 1 + erf, has no digits left in float64 below -8; its values there are under 1e-14.
    # Elsewhere far left the argument of e^x is large, and its rounding is magnified.
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("backend", [CpuBackend(), ReferenceBackend()], ids=lambda backend: backend.name)
def test_numbers_that_are_not_finite_are_told(backend: Backend) -> None:
    width = 77
    for bad in (np.nan, np.inf, -np.inf):
        for row, column in ((0, 0), (3, 76), (5, 38), (2, 40)):
            x = rows_of(width, 3)
            executable = compiled(backend, program_of(width, lambda b, v: b.scale(v, 2.0)), {"x": x})
            run(executable, step([(range(6), 0)]))
            assert executable.finite
            x[row, column] = bad
            executable = compiled(backend, program_of(width, lambda b, v: b.scale(v, 2.0)), {"x": x})
            run(executable, step([(range(6), 0)]))
            assert not executable.finite
            run(executable, step([(range(6, 12), 0)]))
            assert executable.finite


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_softcap(cap: float) -> None:
    x = np.concatenate([np.linspace(-200, 200, 8191), np.geomspace(1e-20, 1, 4096), [0.0]])
    program = program_of(len(x), lambda b, v: b.softcap(v, cap))
    got = run(compiled(CpuBackend(), program, {"x": x[None]}), step([([0], 0)]))
    want = run(compiled(ReferenceBackend(), program, {"x": x[None]}), step([([0], 0)]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("head_size", [2, 6, 16, 20, 64, 256])
@pytest.mark.parametrize("first", [0, 8150, 1_000_000])
def test_rope(head_size: int, first: int) -> None:
    frequencies = 10000.0 ** (-np.arange(head_size // 2) / (head_size // 2))
    arrays = {"x": rows_of(3 * head_size, 6), "f": frequencies}
    check(program_of(3 * head_size, lambda b, x: b.rope(x, head_size, "f")), arrays, 40, first=first)
    if head_size > 4:  # part of each head, made larger
        half = {"x": arrays["x"], "f": frequencies[: head_size // 4]}
        turned = 2 * (head_size // 4)
        check(
            program_of(3 * head_size, lambda b, x: b.rope(x, head_size, "f", turned=turned, scale=1.3)),
            half, 40, first=first,
        )  # fmt: skip
    # Only some columns, in place; the rest stays.
    check(program_of(3 * head_size, lambda b, x: (b.rope(x.columns(head_size, head_size), head_size, "f"), x)[1]),
          arrays, 40, first=first)  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_embed_add_and_select(width: int) -> None:
    arrays = {"x": rows_of(width, 7), "positions": rows_of(width, 8), "kind": rows_of(width, 9)[:1]}
    program = program_of(
        width,
        lambda b, x: b.add(
            b.scale(b.add(x, b.embed("positions", width, index="position", scale=0.5)), 0.3),
            b.embed("kind", width, index="zero"),
        ),
    )
    check(program, arrays, 40)
    batch = step([(range(5), 3), (range(7, 16), 0)])
    some = type(batch)(batch.tokens, batch.positions, batch.row_starts, batch.block_tables, np.array([0, 4, 13], "i4"))
    selected = program_of(width, lambda b, x: b.select_rows(x))
    got = run(compiled(CpuBackend(), selected, arrays), some)
    np.testing.assert_array_equal(got, arrays["x"][[0, 4, 15]].astype(np.float32))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize("normalise", [True, False])
def test_pool(width: int, how: str, normalise: bool) -> None:
    arrays = {"x": rows_of(width, 10)}
    program = program_of(width, lambda b, x: b.pool(x, how, normalise=normalise))
    batch = step([(range(20), 0), ([20], 0), (range(21, 38), 0)])
    got = run(compiled(CpuBackend(), program, arrays), batch)
    np.testing.assert_allclose(got, run(compiled(ReferenceBackend(), program, arrays), batch), rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_multiply_and_norms_without_weights(width: int) -> None:
    arrays = {"x": rows_of(width, 11), "w": rows_of(width, 12)[0], "one": rows_of(1, 13)[0]}
    check(program_of(width, lambda b, x: b.multiply(x, "w")), arrays, 40)
    check(program_of(width, lambda b, x: b.multiply(x, "one", wide=False)), arrays, 40)
    check(program_of(width, lambda b, x: b.rmsnorm(x, None, 1e-5, group=width // 2)), arrays, 40)


@pytest.mark.parametrize("width", WIDTHS)
def test_streams(width: int) -> None:
    arrays = {"x": rows_of(3 * width + 12, 14)}
    columns = 3 * width + 12
    for inputs, offset in ((3, 0.0), (1, 1.5)):
        program = program_of(
            columns,
            lambda b, x, inputs=inputs, offset=offset: b.mix_streams(
                x.columns(12, inputs * width), x.columns(0, 4 * inputs), inputs, offset=offset
            ),
        )
        assert program.result.width == 4 * width
        check(program, arrays, 40)
    # In place too; rows of zeros stay zeros.
    arrays["x"][3, :width] = 0.0
    arrays["x"][5, width : 2 * width] = 0.0
    for into in (False, True):
        check(
            program_of(
                columns,
                lambda b, x, into=into: b.match_magnitude(
                    x.columns(0, width), x.columns(width, width), least=1e-5, into=x.columns(0, width) if into else None
                ),
            ),
            arrays,
            40,
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_sparsify(width: int) -> None:
    arrays = {"x": rows_of(width, 15) + 2.0}
    for deviations in (0.0, 0.9, -0.4):
        check(program_of(width, lambda b, x, d=deviations: b.sparsify(x, d, into=x)), arrays, 40, rtol=2e-5)
    got = run(
        compiled(CpuBackend(), program_of(width, lambda b, x: b.sparsify(x, 0.5)), arrays), step([(range(40), 0)])
    )
    assert 0.1 < (got > 0).mean() < 0.6


@pytest.mark.parametrize("backend", [CpuBackend(), ReferenceBackend()], ids=lambda backend: backend.name)
def test_a_token_beyond_a_table_has_its_first_row(backend: Backend) -> None:
    arrays = {"x": rows_of(16, 16), "few": rows_of(16, 17)[:9]}
    program = program_of(16, lambda b, x: b.embed("few", 16, index="known_token", scale=0.5))
    got = run(compiled(backend, program, arrays), step([([8, 9, 39, 0], 0)]))
    np.testing.assert_array_equal(got, 0.5 * arrays["few"][[8, 0, 0, 0]].astype(np.float32))
