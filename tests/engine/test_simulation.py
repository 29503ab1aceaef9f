"""Thousands of requests through the real scheduler, runner and prefix tree, with every account checked after each step.

Only the model is a stand-in: one that remembers what was written where (remembering.py), and whose right answer is
known without any engine. The seed is the test's parameter; a seed replays exactly.
"""

import random

import numpy as np
import pytest
from remembering import EOS, VOCABULARY, RememberingExecutable, continuation
from small_model import ask, no_tokenizer

from tokenworks.engine.engine import Engine
from tokenworks.engine.scheduler import PRIORITY_S
from tokenworks.engine.sequence import State
from tokenworks.kernels.backend import Limits
from tokenworks.kvcache.prefix import Node
from tokenworks.protocol.messages import Finish, Generate, TokenChunk


def engine_for(limits: Limits, context_tokens: int) -> tuple[Engine, RememberingExecutable]:
    model = RememberingExecutable(limits)
    engine = Engine(
        model, limits, eos_token_ids=frozenset({EOS}), context_tokens=context_tokens, vocabulary=VOCABULARY,
        tokenizer_json=no_tokenizer,
    )  # fmt: skip
    return engine, model


def check_accounts(engine: Engine, limits: Limits) -> None:
    """No block is leaked, wrongly shared, or counted wrongly."""
    scheduler = engine._scheduler
    space = scheduler._space
    held = [0] * limits.blocks
    in_tree = [False] * limits.blocks
    nodes: list[Node] = [*space.tree.root.children.values()]
    while nodes:
        node = nodes.pop()
        assert not in_tree[node.block], "two nodes, one block"
        in_tree[node.block] = True
        held[node.block] += 1
        nodes += node.children.values()
    private: set[int] = set()
    for sequence in scheduler._running:
        row = space.tables[sequence.slot].tolist()
        assert min(row[: sequence.blocks], default=0) >= 0
        assert set(row[sequence.blocks :]) <= {-1}
        assert row[: len(sequence.nodes)] == [node.block for node in sequence.nodes]
        assert sequence.computed <= sequence.blocks * limits.block_tokens
        assert len(sequence.nodes) == sequence.computed // limits.block_tokens, "a full block that is not shared"
        if sequence.state is State.DECODE:
            assert sequence.computed == len(sequence.tokens) - 1
            assert sequence.blocks == -(-sequence.computed // limits.block_tokens), "a draft's block was kept"
        for block in row[: sequence.blocks]:
            held[block] += 1
        own = set(row[len(sequence.nodes) : sequence.blocks])
        assert not own & private, "two sequences write one block"
        assert not any(in_tree[block] for block in own)
        private |= own
    assert held == [space.pool.references(block) for block in range(limits.blocks)]
    assert space.pool.free == held.count(0)
    assert space.tree.idle == sum(tree and count == 1 for tree, count in zip(in_tree, held, strict=True))
    assert all(owner.state is State.PREFILL for owner in space._filling.values())
    for queue in (scheduler._running, scheduler._waiting):
        assert [s.rank for s in queue] == sorted(s.rank for s in queue)
    assert len(scheduler._running) + len(scheduler._waiting) == len(scheduler._sequences)
    stats = scheduler.stats()
    assert stats.kv_blocks_used + stats.kv_blocks_cached + space.pool.free == stats.kv_blocks_total == limits.blocks


class World:
    """Random arrivals and cancellations; every ending is written down."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = random.Random(seed)
        size = draw.choice([1, 2, 4, 16])
        self.limits = Limits(
            step_tokens=draw.choice([3, 8, 32, 200]),
            sequences=draw.choice([1, 4, 16]),
            logit_rows=draw.choice([3, 16, 64]),
            blocks=draw.choice([8, 12, 16, 30, 400]) * 16 // size,
            block_tokens=size,
            cache_dtype="float32",
            threads=1,
        )
        self.context_tokens = draw.choice([60, 200, 1000])
        self.engine, self.model = engine_for(self.limits, self.context_tokens)
        self.room = min(self.context_tokens, self.limits.blocks * size)
        self.systems = [[draw.randrange(VOCABULARY) for _ in range(draw.choice([0, 5, 16, 30]))] for _ in range(3)]
        self.arrivals_per_step = draw.choice([0.1, 0.5, 3.0])
        self.cancels_per_step = draw.choice([0.0, 0.02, 0.2])
        self.ignore_eos = draw.choice([0.0, 0.3, 1.0])
        self.now_s = 0.0
        self.step_s, self.token_s = draw.choice([(0.01, 0.0), (0.01, 0.001), (0.001, 0.001)])
        self.requests: dict[str, Generate] = {}
        self.replies: dict[str, list[TokenChunk]] = {}
        self.live: set[str] = set()
        self.preempted = 0
        self.cancelled: set[str] = set()

    def arrive(self) -> None:
        draw = self.draw
        prompt = [*draw.choice(self.systems), *(draw.randrange(3) for _ in range(draw.choice([0, 1, 3, 20, 60])))]
        request_id = f"r{len(self.requests)}"
        done: list[int] = []
        max_tokens = draw.choice([0, 1, 5, 40, 120])
        if prompt and max_tokens and draw.random() < 0.2:  # carried on from another worker
            done = continuation(prompt, draw.randrange(min(max_tokens, 50)))
            done = done[:-1] if done and done[-1] == EOS else done
        request = ask(
            request_id, prompt, tuple(done), draw.choice([-1, 0, 0, 0, 3]), max_tokens=max_tokens,
            prompt_logprobs=draw.choice([None, None, None, 0]), ignore_eos=draw.random() < self.ignore_eos,
        )  # fmt: skip
        self.requests[request_id] = request
        self.replies[request_id] = []
        self.live.add(request_id)
        self.engine.add(request, self.now_s)

    def step(self) -> None:
        scheduler = self.engine._scheduler
        decoding = {s.request.request_id: s.rank for s in scheduler._running if s.state is State.DECODE}
        preemptions = scheduler.stats().preemptions_total
        written = self.model.written
        step = self.engine.step(self.now_s)
        losers = [s.rank for s in scheduler._waiting if s.request.request_id in decoding]
        self.now_s += self.step_s + self.token_s * (self.model.written - written)
        told = {chunk.request_id for chunk in step.chunks}
        if losers:
            assert all(decoding[r] < min(losers) for r in decoding.keys() & told), "not the last one gave up its blocks"
            self.preempted += 1
        if step.stats.preemptions_total == preemptions:
            assert decoding.keys() <= told, "a decoding sequence was held up"
        for chunk in step.chunks:
            self.replies[chunk.request_id].append(chunk)
            if chunk.finish is not None:
                self.live.remove(chunk.request_id)  # KeyError: it had ended already
        check_accounts(self.engine, self.limits)
        assert self.live == set(scheduler._sequences)
        assert not self.cancelled & self.live, "a cancelled request outlived a step"

    def cancel(self) -> None:
        request_id = self.draw.choice(sorted(self.requests))
        self.engine.cancel(request_id)
        if request_id in self.live:
            self.cancelled.add(request_id)

    def run(self, arrivals: int) -> None:
        while len(self.requests) < arrivals:
            while self.draw.random() < self.arrivals_per_step / (1 + self.arrivals_per_step):
                self.arrive()
            if self.requests and self.draw.random() < self.cancels_per_step:
                self.cancel()
            self.step()
        # Nothing new comes: what is there must end, within the steps that it takes one after the other, chunk by chunk.
        steps = sum(len(self.requests[r].prompt_ids) + min(120, self.room) + 2 for r in self.live)
        while self.engine.busy:
            self.step()
            steps -= 1
            assert steps >= 0, "a request is starved"

    def check_reply(self, request: Generate) -> None:
        chunks = self.replies[request.request_id]
        assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        finish = chunks[-1].finish
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        prompt, sampling = list(request.prompt_ids), request.sampling
        longest = min(sampling.max_tokens, self.room - len(prompt))
        if not prompt or longest < min(1, sampling.max_tokens):
            assert (finish, tokens) == (Finish.FAILED, [])
            assert chunks[-1].error
            return
        expected = continuation(prompt, longest, ignore_eos=sampling.ignore_eos)[len(request.output_ids) :]
        if finish is Finish.CANCELLED:
            assert request.request_id in self.cancelled
            assert tokens == expected[: len(tokens)]
            return
        assert tokens == expected
        if expected and expected[-1] == EOS and not sampling.ignore_eos:
            assert (finish, chunks[-1].stop_token_id) == (Finish.STOP, EOS)
        else:
            assert (finish, chunks[-1].stop_token_id) == (Finish.LENGTH, None)
        if sampling.prompt_logprobs is not None and not request.output_ids:
            logprobs = chunks[0].prompt_logprobs
            assert [at.token_id for at in logprobs] == prompt[1:]
            assert (
                [at.rank for at in logprobs]
                == [  # the stand-in puts its own answer there: is each row in its place?
                    continuation(prompt[:i], 1)[0] for i in range(1, len(prompt))
                ]
            )
            assert chunks[0].cached_tokens == 0
        assert not any(chunk.prompt_logprobs for chunk in chunks[1:])


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
    [chunk] = scheduler.commit(plan, engine._runner.run(plan))
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
