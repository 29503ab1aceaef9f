"""Thousands of requests through the real scheduler, runner and prefix tree, with every account checked after each step.

Only the model is a stand-in (worlds.py). The seed is the test's parameter; a seed replays exactly.
"""

import numpy as np
import pytest
from remembering import VOCABULARY, Ahead, continuation
from small_model import ask
from worlds import World, check_accounts, engine_for

from tokenworks.engine.scheduler import PRIORITY_S
from tokenworks.kernels.backend import Limits
from tokenworks.protocol.messages import Finish, TokenChunk


@pytest.mark.parametrize("seed", range(30))
def test_random_worlds(seed: int) -> None:
    print("seed", seed)
    world = World(seed)
    print(world.limits, world.context_tokens)
    world.run(arrivals=100)
    assert world.replies.keys() == world.requests.keys()
    for request in world.requests.values():
        world.check_reply(request)
    stats = world.engine._scheduler.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)


def test_the_worlds_know_every_trouble() -> None:
    """The tests above mean nothing if memory never runs out in them, or nobody shares or leaves."""
    preempted = hits = cancelled = drafted = accepted = 0
    for seed in (8, 9, 13, 23):
        world = World(seed)
        world.run(arrivals=100)
        preempted += world.preempted
        hits += world.engine._scheduler.stats().prefix_hit_tokens_total
        cancelled += len(world.cancelled)
        drafted += world.engine._scheduler.stats().draft_tokens_total
        accepted += world.engine._scheduler.stats().draft_tokens_accepted_total
    assert preempted > 5
    assert hits > 500
    assert cancelled > 10
    assert accepted > 500
    assert drafted > accepted + 100


@pytest.mark.parametrize("seed", range(30))
def test_random_worlds_that_run_ahead(seed: int) -> None:
    """Steps begin before anybody has seen the tokens of the last: the same replies, and the same accounts."""
    world = World(seed, kind=Ahead, speculate=seed % 2 == 0)
    print(world.limits, world.context_tokens)
    world.run(arrivals=100)
    for request in world.requests.values():
        world.check_reply(request)
    stats = world.engine._scheduler.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)


def test_worlds_do_run_ahead() -> None:
    """Most tokens of a roomy world are run before they are seen, some of one where memory runs out; guesses go on."""
    unseen, made, drafted, preempted = [0, 0], [0, 0], 0, 0
    for seed in (8, 9, 13, 23):
        for speculates in (False, True):
            world = World(seed, kind=Ahead, speculate=speculates)
            world.run(arrivals=100)
            unseen[speculates] += world.model.unseen
            stats = world.engine._scheduler.stats()
            made[speculates] += stats.output_tokens_total
            drafted += stats.draft_tokens_accepted_total
            preempted += world.preempted
    assert unseen[False] > made[False] / 2, (unseen, made)
    assert unseen[True] > 100, (unseen, made)
    assert drafted > 300
    assert preempted > 5


def sizes(**changes: int) -> Limits:
    values = {"step_tokens": 16, "sequences": 8, "logit_rows": 8, "blocks": 100, "block_tokens": 4, "threads": 1}
    return Limits(**{**values, **changes}, cache_dtype="float32")


def test_a_long_prompt_does_not_hold_up_running_requests() -> None:
    engine, _ = engine_for(sizes(blocks=400), 1500)
    for i in range(4):
        engine.add(ask(f"short{i}", [i, 1], max_tokens=300, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(ask("long", [5] * 1000, max_tokens=1), 0.0)
    steps = 0
    while "long" in engine._scheduler:
        told = {chunk.request_id for chunk in engine.step(0.0).chunks}
        assert {f"short{i}" for i in range(4)} <= told
        steps += 1
    assert steps == -(-1000 // (16 - 4)), "the rest of each step's budget is the long prompt's"


def test_a_burst_with_the_same_prompt_computes_it_once() -> None:
    engine, model = engine_for(sizes(), 200)
    prompt = [7, 8, 9, 10] * 10
    for i in range(8):
        engine.add(ask(str(i), prompt, max_tokens=3, ignore_eos=True), 0.0)
    cached = {}
    while engine.busy:
        for chunk in engine.step(0.0).chunks:
            cached.setdefault(chunk.request_id, chunk.cached_tokens)
        check_accounts(engine, sizes())
    assert cached == {"0": 0} | {str(i): 36 for i in range(1, 8)}  # all full blocks, less the one with the last token
    assert model.written == 40 + 7 * 4 + 8 * 2


def test_a_request_of_low_priority_is_not_starved() -> None:
    """High-priority work keeps every slot taken for ever; it overtakes the low one for a minute a level, no longer."""
    engine, _ = engine_for(sizes(sequences=2), 200)
    now_s, number, since_s = 0.0, 0, 5.0
    ended_s = None
    while ended_s is None:
        while engine._scheduler.stats().waiting < 3:
            engine.add(ask(f"high{number}", [number % VOCABULARY, 3], max_tokens=10, ignore_eos=True), now_s)
            number += 1
        if now_s == since_s:
            engine.add(ask("low", [1, 2], priority=2, max_tokens=1), now_s)
        for chunk in engine.step(now_s).chunks:
            if chunk.request_id == "low":
                ended_s = now_s
        now_s += 1.0
        assert now_s < 1000
    assert 2 * PRIORITY_S <= ended_s - since_s < 2 * PRIORITY_S + 30


def test_priorities_then_arrival() -> None:
    engine, _ = engine_for(sizes(sequences=1), 200)
    for name, priority in [("a", 1), ("b", 0), ("c", 1), ("d", -1), ("e", 0)]:
        engine.add(ask(name, [ord(name) % VOCABULARY, 1], priority=priority, max_tokens=2, ignore_eos=True), 0.0)
    order = []
    while engine.busy:
        order += [chunk.request_id for chunk in engine.step(0.0).chunks if chunk.finish]
    assert order == ["d", "b", "e", "a", "c"]


def test_the_cache_is_given_back_oldest_first_and_hits_survive() -> None:
    engine, _ = engine_for(sizes(blocks=30), 100)

    def one(name: str, prompt: list[int]) -> int:
        engine.add(ask(name, prompt, max_tokens=1), 0.0)
        chunks: list[TokenChunk] = []
        while engine.busy:
            chunks += engine.step(0.0).chunks
        return chunks[0].cached_tokens

    old, young, new = ([n] * 41 for n in (1, 2, 3))
    assert [one("a", old), one("b", young), one("c", old)] == [0, 0, 40]
    assert one("d", new) == 0  # 33 blocks would be wanted: the end of `young`, used longest ago, goes
    assert one("e", old) == 40
    assert 0 < one("f", young) < 40


def test_cached_blocks_are_not_counted_as_room_for_the_rest() -> None:
    engine, _ = engine_for(sizes(blocks=10), 100)
    begin = [1, 2, 3, 4] * 4

    def runs_until(name: str) -> None:
        while name in engine._scheduler:
            engine.step(0.0)

    engine.add(ask("first", [*begin, 9], max_tokens=1), 0.0)
    runs_until("first")  # leaves 4 idle blocks, 6 free ones
    engine.add(ask("runs", [5] * 12, max_tokens=9, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(ask("waits", [*begin, *[7] * 12], max_tokens=1), 0.0)  # finds 4 blocks, wants 4 more; 2 or 3 are free
    stats = engine.step(0.0).stats
    assert (stats.running, stats.waiting, stats.kv_blocks_cached) == (1, 1, 4)
    runs_until("runs")
    assert "waits" in engine._scheduler
    runs_until("waits")
    assert engine.step(0.0).stats.preemptions_total == 0
    assert engine.step(0.0).stats.prefix_hit_tokens_total == 16


def test_running_requests_have_a_block_each_put_by() -> None:
    engine, _ = engine_for(sizes(blocks=6), 100)
    engine.add(ask("runs", [5] * 9, max_tokens=5, ignore_eos=True), 0.0)
    engine.step(0.0)
    engine.add(ask("waits", [7] * 8, max_tokens=1), 0.0)  # wants the 3 free ones; the first will soon want one of them
    assert engine.step(0.0).stats.waiting == 1
    while engine.busy:
        assert engine.step(0.0).stats.preemptions_total == 0


def test_what_can_never_fit_fails_at_once_and_says_why() -> None:
    engine, _ = engine_for(sizes(blocks=5), 100)
    engine.add(ask("a", [1] * 20), 0.0)
    engine.add(ask("b", [VOCABULARY]), 0.0)
    engine.add(ask("c", []), 0.0)
    engine.add(ask("d", [1] * 19), 0.0)
    chunks = {chunk.request_id: chunk for chunk in engine.step(0.0).chunks}
    assert chunks["a"].error == "the prompt has 20 tokens; there is room for 20, with at least one of output"
    assert "token id 32" in str(chunks["b"].error)
    assert "no tokens" in str(chunks["c"].error)
    while engine.busy:
        chunks.update({chunk.request_id: chunk for chunk in engine.step(0.0).chunks})
    assert (chunks["d"].finish, len(chunks["d"].token_ids)) == (Finish.LENGTH, 1)


def test_a_cancelled_request_is_gone_by_the_next_step() -> None:
    engine, _ = engine_for(sizes(), 200)
    engine.add(ask("runs", [1] * 60, max_tokens=100), 0.0)
    engine.add(ask("waits", [2] * 60, max_tokens=100), 0.0)
    engine.step(0.0)
    for name in ("runs", "waits", "unknown", "runs"):
        engine.cancel(name)
    step = engine.step(0.0)
    assert [(c.request_id, c.finish) for c in step.chunks] == [("runs", "cancelled"), ("waits", "cancelled")]
    assert (step.stats.running, step.stats.waiting, step.stats.kv_blocks_used) == (0, 0, 0)
    assert not engine.busy


def test_a_cancellation_during_the_step_takes_effect_with_its_end() -> None:
    engine, _ = engine_for(sizes(), 200)
    scheduler = engine._scheduler
    engine.add(ask("a", [1] * 8), 0.0)
    plan = scheduler.plan()
    engine.cancel("a")
    [chunk] = scheduler.commit(plan, engine._runner.look(engine._runner.begin(plan)))
    assert (chunk.finish, chunk.token_ids) == (Finish.CANCELLED, ())
    assert not scheduler.busy


def test_an_id_in_use_leaves_the_first_request_alone() -> None:
    engine, _ = engine_for(sizes(), 200)
    engine.add(ask("a", [1, 2], max_tokens=4, ignore_eos=True), 0.0)
    engine.add(ask("a", [9] * 50), 0.0)
    tokens: list[int] = []
    while engine.busy:
        tokens += [token for chunk in engine.step(0.0).chunks for token in chunk.token_ids]
    assert len(tokens) == 4


def test_numbers_that_are_not_finite_fail_one_request_only() -> None:
    engine, model = engine_for(sizes(), 200)
    run = model.run

    def poisoned(batch):
        logits = run(batch)
        bad = {
            int(batch.row_starts[s + 1]) - 1 for s in range(len(batch.row_starts) - 1) if batch.block_tables[s, 0] == 0
        }
        for r, row in enumerate(batch.logit_rows.tolist()):
            if row in bad:
                logits[r, 5] = np.nan
        return logits

    model.run = poisoned  # type: ignore[method-assign]
    engine.add(ask("bad", [1, 2, 3, 4, 5]), 0.0)  # the first to run gets block 0
    engine.add(ask("good", [2, 2, 3], max_tokens=6), 0.0)
    chunks: list[TokenChunk] = []
    while engine.busy:
        chunks += engine.step(0.0).chunks
    bad = [chunk for chunk in chunks if chunk.request_id == "bad"]
    assert [chunk.finish for chunk in bad] == [Finish.FAILED]
    assert "not finite" in str(bad[0].error)
    assert [t for chunk in chunks if chunk.request_id == "good" for t in chunk.token_ids] == continuation([2, 2, 3], 6)
    assert not engine._scheduler._space.tree.root.children.get((1, 2, 3, 4)), "a bad block was kept for others"
