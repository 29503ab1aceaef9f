"""Plans of random programs: no buffer is overwritten while it is needed, and every call waits for what it reads."""

import numpy as np
import pytest
from kernel_support import limits, run, step, tensors

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.cpu.plan import LINE_FLOATS, Plan, Prepare, Product, make_plan, reads, written
from tokenworks.kernels.program import Attend, Pool, Program, ProgramBuilder, SelectRows, Value
from tokenworks.kernels.reference import ReferenceBackend

WIDTH = 32


def random_program(seed: int) -> Program:
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    values = [builder.embed("x", WIDTH)]

    def any_value() -> Value:
        return values[int(rng.integers(max(0, len(values) - 4), len(values)))]

    for _ in range(int(rng.integers(3, 25))):
        kind = rng.integers(0, 6)
        if kind == 0:
            wide = builder.linear(any_value(), ["w", "w"], 2 * WIDTH)
            values += [wide.columns(0, WIDTH), wide.columns(WIDTH, WIDTH)]
        elif kind == 1:
            values.append(builder.linear(any_value(), ["w"], WIDTH))
        elif kind == 2:
            values.append(builder.add(any_value(), any_value()))
        elif kind == 3:
            values.append(builder.rmsnorm(any_value(), "n", 1e-6))
        elif kind == 4:
            builder.rope(any_value(), WIDTH, "f")
        else:
            values.append(builder.gate(any_value(), any_value(), "gelu_tanh"))
    result = any_value()
    return builder.finish(
        builder.select_rows(result) if rng.integers(2) else builder.pool(result, "mean", normalise=False)
    )


def occupied(plan: Plan, program: Program, buffer: int) -> range:
    rows = {"tokens": limits().step_tokens, "selected": limits().logit_rows, "sequences": limits().sequences}
    begin = plan.buffer_offsets[buffer]
    return range(begin, begin + program.buffer_widths[buffer] * rows[plan.buffer_rows[buffer]])


@pytest.mark.parametrize("seed", range(40))
def test_buffers_that_share_memory_are_a_barrier_apart(seed: int) -> None:
    program = random_program(seed)
    plan = make_plan(program, limits())
    epochs = np.cumsum([planned.barrier for planned in plan.calls])
    lives: dict[int, list[int]] = {program.result.buffer: [len(plan.calls)]}
    for planned, epoch in zip(plan.calls, epochs, strict=True):
        for value in (*reads(planned.call), written(planned.call)):
            if value is not None:
                lives.setdefault(value.buffer, []).append(int(epoch))
    for a in lives:
        here = occupied(plan, program, a)
        assert here.start % LINE_FLOATS == 0
        assert here.stop <= plan.arena_floats
        for b in lives:
            there = occupied(plan, program, b)
            if a != b and here.start < there.stop and there.start < here.stop:
                assert max(lives[a]) < min(lives[b]) or max(lives[b]) < min(lives[a])


@pytest.mark.parametrize("seed", range(40))
def test_a_call_waits_for_rows_of_other_threads(seed: int) -> None:
    plan = make_plan(random_program(seed), limits())
    for before, planned in zip(plan.calls, plan.calls[1:], strict=False):
        apart = isinstance(planned.call, Product | Attend | SelectRows | Pool) or isinstance(
            before.call, Product | Attend
        )
        assert planned.barrier == (apart or before.rows != planned.rows)


@pytest.mark.parametrize("seed", range(25))
def test_a_random_program_computes_what_the_reference_does(seed: int) -> None:
    program = random_program(seed)
    rng = np.random.default_rng(seed)
    weights = tensors({
        "x": rng.standard_normal((50, WIDTH)), "w": rng.standard_normal((WIDTH, WIDTH)) / 8,
        "n": rng.standard_normal(WIDTH), "f": rng.uniform(0, 1, WIDTH // 2),
    })  # fmt: skip
    batch = step([(range(20), 3), ([7], 0), (range(30, 50), 0)])
    want = run(ReferenceBackend().compile(program, weights, limits()), batch)
    executable = CpuBackend().compile(program, weights, limits(threads=3))
    for _ in range(3):
        np.testing.assert_allclose(run(executable, batch), want, rtol=2e-3, atol=1e-3 * np.abs(want).max())


def test_products_of_the_same_input_prepare_it_once() -> None:
    builder = ProgramBuilder()
    x = builder.embed("x", WIDTH)
    builder.add(builder.linear(x, ["a"], WIDTH), builder.linear(x, ["b"], WIDTH))
    plan = make_plan(builder.finish(x), limits())
    assert [planned.call.weights for planned in plan.calls if isinstance(planned.call, Prepare)] == [("a", "b")]
