"""A world of random requests for the real scheduler, runner and prefix tree, and what must hold in it after each step.

Only the model is a stand-in: one that remembers what was written where (remembering.py), and whose right answer is
known without any engine. A seed replays exactly.
"""

import random
from collections.abc import Sequence

from remembering import EOS, VOCABULARY, RememberingExecutable, continuation
from small_model import ask, no_tokenizer

from tokenworks.engine.draft import DraftModel
from tokenworks.engine.engine import Engine
from tokenworks.engine.sequence import State, Tenant
from tokenworks.engine.space import CacheSpace
from tokenworks.kernels.backend import Limits
from tokenworks.kvcache.prefix import Node
from tokenworks.protocol.messages import Finish, Generate, TokenChunk


def engine_for(
    limits: Limits,
    context_tokens: int,
    draft: DraftModel | None = None,
    kind: type[RememberingExecutable] = RememberingExecutable,
    speculate: bool = True,
) -> tuple[Engine, RememberingExecutable]:
    model = kind(limits)
    engine = Engine(
        model, limits, eos_token_ids=frozenset({EOS}), context_tokens=context_tokens, vocabulary=VOCABULARY,
        tokenizer_json=no_tokenizer, draft=draft, speculate=speculate,
    )  # fmt: skip
    return engine, model


def check_space(space: CacheSpace, tenants: Sequence[Tenant], limits: Limits) -> None:
    """No block is leaked, wrongly shared, or counted wrongly."""
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
    for tenant in tenants:
        row = space.tables[tenant.slot].tolist()
        assert min(row[: tenant.blocks], default=0) >= 0
        assert set(row[tenant.blocks :]) <= {-1}
        assert row[: len(tenant.nodes)] == [node.block for node in tenant.nodes]
        assert tenant.computed <= tenant.blocks * limits.block_tokens
        assert len(tenant.nodes) == tenant.computed // limits.block_tokens, "a full block that is not shared"
        for block in row[: tenant.blocks]:
            held[block] += 1
        own = set(row[len(tenant.nodes) : tenant.blocks])
        assert not own & private, "two owners"
        assert not any(in_tree[block] for block in own)
        private |= own
    assert held == [space.pool.references(block) for block in range(limits.blocks)]
    assert space.pool.free == held.count(0)
    assert space.tree.idle == sum(tree and count == 1 for tree, count in zip(in_tree, held, strict=True))
    assert len({tenant.slot for tenant in tenants}) == len(tenants)


def check_accounts(engine: Engine, limits: Limits) -> None:
    scheduler = engine._scheduler
    space = scheduler._space
    check_space(space, scheduler._running, limits)
    for sequence in scheduler._running:
        if sequence.state is State.DECODE:
            assert sequence.computed == len(sequence.tokens) - 1
            assert sequence.blocks == -(-sequence.reach // limits.block_tokens), "a draft's block was kept"
    assert all(owner.state is State.PREFILL for owner in space._filling.values())
    for queue in (scheduler._running, scheduler._waiting):
        assert [s.rank for s in queue] == sorted(s.rank for s in queue)
    assert len(scheduler._running) + len(scheduler._waiting) == len(scheduler._sequences)
    stats = scheduler.stats()
    assert stats.kv_blocks_used + stats.kv_blocks_cached + space.pool.free == stats.kv_blocks_total == limits.blocks


class World:
    """Random arrivals and cancellations; every ending is written down."""

    def __init__(
        self,
        seed: int,
        state_slots: Sequence[int] = (0,),
        kind: type[RememberingExecutable] = RememberingExecutable,
        speculate: bool = True,
    ) -> None:
        """`state_slots`: one of these numbers it has."""
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
            state_slots=random.Random(seed).choice(state_slots),
        )
        self.context_tokens = draw.choice([60, 200, 1000])
        self.engine, self.model = engine_for(self.limits, self.context_tokens, kind=kind, speculate=speculate)
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
        written, before = self.model.written, self.engine._under_way
        step = self.engine.step(self.now_s)
        losers = [s.rank for s in scheduler._waiting if s.request.request_id in decoding]
        self.now_s += self.step_s + self.token_s * (self.model.written - written)
        told = {chunk.request_id for chunk in step.chunks}
        if losers:
            stayed = told if before is None else {s.request.request_id for s in scheduler._running}
            assert all(decoding[r] < min(losers) for r in decoding.keys() & stayed), (
                "not the last one gave up its blocks"
            )
            self.preempted += 1
        if step.stats.preemptions_total == preemptions and (before or not self.engine._under_way):
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
