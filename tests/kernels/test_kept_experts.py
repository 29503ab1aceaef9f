"""Which experts are kept, of a model larger than memory: what always holds, and how often they are there."""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.kernels.cpu import _cpu
from tokenworks.kernels.cpu.keeper import allowed_bytes

Ints = npt.NDArray[np.int64]

EXPERTS = 12
NEEDED = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS, unique=True)


@given(st.integers(0, EXPERTS), st.lists(st.one_of(NEEDED, st.integers(0, EXPERTS)), max_size=60))
def test_every_slot_has_the_expert_that_was_brought_there_last(slots: int, events: list[list[int] | int]) -> None:
    kept = _cpu.KeptExperts(EXPERTS, slots, 4.0)
    at: dict[int, int] = {}
    limit = slots
    for event in events:
        if isinstance(event, int):
            limit = min(event, slots)
            gone = kept.limit(event)
            assert sorted(gone) == sorted(expert for slot, expert in at.items() if slot >= limit)
            at = {slot: expert for slot, expert in at.items() if slot < limit}
        else:
            before = set(at.values())
            free = limit - len(at)
            moves = kept.choose(event)
            for expert, slot, earlier in moves:
                assert expert in set(event) - before
                assert earlier == at.get(slot, -1)
                assert earlier not in event
                at[slot] = expert
            assert sum(earlier >= 0 for _, _, earlier in moves) <= max(1, limit // 4)
            assert len(moves) >= min(free, len(set(event) - before))
        assert kept.kept == len(at) <= limit
        assert {e: kept.slot(e) for e in range(EXPERTS) if kept.slot(e) >= 0} == {e: s for s, e in at.items()}


def test_the_least_used_goes() -> None:
    kept = _cpu.KeptExperts(5, 3, 100.0)
    for needed in ([0, 1], [0, 2], [0, 1]):
        kept.choose(needed)
    assert kept.choose([3]) == [(3, kept.slot(3), 2)]
    assert kept.choose([0, 4]) == [(4, kept.slot(4), 3)]


def test_old_uses_fade() -> None:
    kept = _cpu.KeptExperts(3, 2, 10.0)
    for _ in range(50):
        kept.choose([0])
    for _ in range(40):
        kept.choose([1])
    assert kept.choose([2]) == [(2, kept.slot(2), 0)]


def test_scores_do_not_overflow() -> None:
    kept = _cpu.KeptExperts(3, 2, 0.5)
    for _ in range(3000):
        kept.choose([0])
        kept.choose([0, 1])
    assert kept.choose([2]) == [(2, kept.slot(2), 1)]


def traffic(rng: np.random.Generator, steps: int, layers: int, experts: int, top_k: int, skew: float) -> Ints:
    """[steps, layers, top_k] by routers whose biases have the standard deviation `skew`."""
    biases = rng.standard_normal((layers, experts)) * skew
    chances = biases + rng.gumbel(size=(steps, layers, experts))
    return np.argsort(-chances, axis=2)[:, :, :top_k] + np.arange(layers)[:, None] * experts


def shares_found(chosen: Ints, experts: int, slots: int, half_life: float) -> npt.NDArray[np.float64]:
    """[steps] of the experts chosen, those that were kept."""
    kept = _cpu.KeptExperts(experts, slots, half_life * chosen.shape[1])
    missed = [sum(len(kept.choose(layer)) for layer in step) for step in chosen.tolist()]
    return 1 - np.array(missed) / chosen[0].size


def share_of_last_used(chosen: Ints, slots: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    found = 0
    for expert in chosen.ravel().tolist():
        found += expert in kept
        kept[expert] = None
        kept.move_to_end(expert)
        if len(kept) > slots:
            kept.popitem(last=False)
    return found / chosen.size


def best_fixed_share(chosen: Ints, slots: int) -> float:
    return float(np.sort(np.bincount(chosen.ravel()))[::-1][:slots].sum() / chosen.size)


@pytest.mark.parametrize("skew", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("slots", [64, 128])
def test_skewed_traffic(skew: float, slots: int) -> None:
    """Near the best fixed choice, which is known only afterwards; better than keeping what was used last."""
    chosen = traffic(np.random.default_rng(1), 1500, layers=4, experts=64, top_k=6, skew=skew)
    found = shares_found(chosen, 256, slots, 32)[500:].mean()
    assert found > best_fixed_share(chosen[500:], slots) - 0.06
    missed_by_last_used = 1 - share_of_last_used(chosen[500:], slots)
    assert 1 - found < 0.9 * missed_by_last_used


def test_a_change_of_work_is_followed() -> None:
    rng = np.random.default_rng(2)
    chosen = np.concatenate([traffic(rng, 700, layers=4, experts=64, top_k=6, skew=1.5) for _ in range(2)])
    found = shares_found(chosen, 256, 100, 32)
    settled = found[500:700].mean()
    assert found[700:720].mean() < settled - 0.1
    assert found[900:].mean() > settled - 0.04


def test_a_prompt_that_needs_all_leaves_most_of_what_is_kept() -> None:
    chosen = traffic(np.random.default_rng(3), 600, layers=4, experts=64, top_k=6, skew=1.5)
    kept = _cpu.KeptExperts(256, 100, 32 * 4.0)
    for layer in chosen.reshape(-1, 6).tolist():
        kept.choose(layer)
    before = {expert for expert in range(256) if kept.slot(expert) >= 0}
    for layer in range(4):
        kept.choose(list(range(64 * layer, 64 * layer + 64)))
    after = {expert for expert in range(256) if kept.slot(expert) >= 0}
    assert len(before & after) >= 60


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), st.integers(-500, 2000), st.integers(1, 300))
def test_memory_given_and_taken_back(now: int, most: int, taken: int, spare: int, margin: int) -> None:
    now, taken = min(now, most), min(taken, most)
    allowed = allowed_bytes(now, most, taken, spare, margin)
    assert 0 <= allowed <= most
    if spare * 2 < margin:
        assert allowed < taken or allowed == 0, "memory is given back"
    elif allowed != now:
        assert allowed >= now or allowed >= taken, "nothing is taken away while there is room"
    if allowed > taken:
        assert allowed == now or spare - (allowed - taken) >= margin, "what is given leaves the margin"
