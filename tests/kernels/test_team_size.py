"""How many threads run a step: chosen on machines that are made up, and without a trace in the results."""

import random
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_support import limits, program_of, step, tensors

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.cpu.team_size import StepSize, TeamSize

Times = Mapping[int, float]
"""Seconds of a step by its number of threads."""


def played(most: int, times: Callable[[int], Times], steps: int, rows: int = 1, seed: int = 0) -> tuple[float, Counter]:
    """Seconds of all steps over those of the best choice for each; how often each number ran. One step in fifty is
    thrice as long, as on a machine that others use."""
    chance, team = random.Random(seed), TeamSize(most)
    size, spent, best, ran = StepSize(0, rows, 100 * rows), 0.0, 0.0, Counter()
    for i in range(steps):
        threads, now = team.choose(size), times(i)
        noise = (3 if chance.random() < 0.02 else 1) * (1 + abs(chance.gauss(0, 0.05)))
        team.took(size, threads, now[threads] * noise)
        spent, best = spent + now[threads], best + min(now.values())
        ran[threads] += 1
    return spent / best, ran


def test_a_machine_of_one_core_has_no_choice() -> None:
    assert played(1, lambda _: {1: 0.01}, 100)[1] == {1: 100}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("times", "best"),
    [({1: 0.02, 2: 0.011}, 2), ({1: 0.4, 2: 0.21}, 2), ({1: 0.0026, 2: 0.0034}, 1), ({1: 0.4, 2: 0.9}, 1)],
)
def test_what_is_faster_runs_and_trials_cost_little(times: Times, best: int, seed: int) -> None:
    lost, ran = played(2, lambda _: times, 2000, seed=seed)
    assert lost < 1.05
    assert ran[best] > 1600


def test_of_many_cores_some_may_be_best() -> None:
    lost, ran = played(16, lambda _: {1: 0.016, 2: 0.009, 4: 0.005, 8: 0.004, 16: 0.006}, 4000)
    assert lost < 1.06
    assert ran.most_common(1)[0][0] == 8
    assert set(ran) == {4, 8, 16}, "trials go one size up or down"


def test_numbers_of_threads_that_are_no_power_of_two() -> None:
    assert set(played(6, lambda _: {n: 0.01 + n / 1000 for n in range(1, 7)}, 2000)[1]) == {1, 2, 4, 6}


@pytest.mark.parametrize("seed", range(5))
def test_others_that_come_and_go(seed: int) -> None:
    """From step 1000 to 2000 somebody else is busy: two threads wait for each other, one finds a place."""
    quiet, busy = {1: 0.0036, 2: 0.0020}, {1: 0.0037, 2: 0.0090}
    lost, _ = played(2, lambda i: busy if 1000 <= i < 2000 else quiet, 3000, seed=seed)
    always_two = (2000 * quiet[2] + 1000 * busy[2]) / (2000 * quiet[2] + 1000 * busy[1])
    assert lost < 1.15 < 1.6 < always_two


@given(
    times=st.lists(st.floats(0.0005, 2.0), min_size=4, max_size=4),
    rows=st.lists(st.integers(1, 1023), min_size=1, max_size=4),
)
def test_no_machine_makes_it_much_worse_than_all_threads(times: list[float], rows: list[int]) -> None:
    team, by_threads = TeamSize(8), dict(zip((1, 2, 4, 8), times, strict=True))
    spent = all_threads = 0.0
    for i in range(800):
        size = StepSize(0, rows[i % len(rows)], 7 * i)
        threads = team.choose(size)
        seconds = by_threads[threads] * size.rows**0.7
        team.took(size, threads, seconds)
        spent, all_threads = spent + seconds, all_threads + by_threads[8] * size.rows**0.7
    first_trials = 12 * 4 * max(times) * max(rows) ** 0.7
    assert spent <= 1.05 * all_threads + first_trials


def test_results_have_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that a step does not need sleep through it, and through what samples its rows."""
    chance, asked = random.Random(1), []

    def any_number(self: TeamSize, size: StepSize) -> int:
        asked.append(chance.randint(1, 5))
        return asked[-1]

    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((40, 96)), "w": rng.standard_normal((64, 32))}
    program = program_of(
        96,
        lambda b, x: b.linear(
            b.attend(*(x.columns(i, 32) for i in (0, 32, 64)), heads=2, kv_heads=2, head_size=16, scale=0.3), ["w"], 64
        ),
    )
    batch = step([(range(20), 0), ([7], 0), (range(30, 40), 0)], [[0, 1], [2], [3]])
    model = CpuBackend().compile(program, tensors(arrays), limits(threads=5))
    expected = model.run(batch).copy()
    values, ranks, _, _ = model.logprobs(expected, batch.tokens % 64, 2)
    monkeypatch.setattr(TeamSize, "choose", any_number)
    for _ in range(300):
        assert np.array_equal(model.run(batch), expected)
        again = model.logprobs(expected, batch.tokens % 64, 2)
        assert np.array_equal(again[0], values)
        assert np.array_equal(again[1], ranks)
    assert set(asked) == {1, 2, 3, 4, 5}
