"""A draft model: the same output whatever it says, its cache's accounts in order, and its time well spent or not at all."""

import random
from collections.abc import Sequence as SequenceOf

import numpy as np
import pytest
from remembering import VOCABULARY, RememberingExecutable, continuation
from small_model import Reply, ask, limits, make_engine, run, small_model
from test_speculate import requests, use
from worlds import World, check_space, engine_for

from tokenworks.engine.draft import DraftModel
from tokenworks.engine.engine import Engine
from tokenworks.engine.sequence import Sequence
from tokenworks.engine.speculate import Speculator
from tokenworks.kernels.backend import Float32, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.protocol.messages import EngineStats, Generate


class Ticks:
    """A clock that goes on by so much with each look."""

    def __init__(self, tick_s: float) -> None:
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


class Mistaken(RememberingExecutable):
    """Knows as much as the model, and says something else now and then; sometimes nothing that is a number."""

    def __init__(self, sizes: Limits, mistakes: float, vocabulary: int = VOCABULARY) -> None:
        super().__init__(sizes)
        self.mistakes, self.vocabulary, self.draw = mistakes, vocabulary, random.Random(5)

    def run(self, batch: StepBatch) -> Float32:
        assert batch.tokens.max() < self.vocabulary
        logits = super().run(batch)
        for row in logits:
            if self.draw.random() < self.mistakes:
                row[self.draw.randrange(VOCABULARY)] = self.draw.choice([2.0, np.nan])
        return logits[:, : self.vocabulary]


def model(sizes: Limits, *, mistakes: float = 0.0, tick_s: float = 0.0005, **how: int) -> tuple[DraftModel, Mistaken]:
    executable = Mistaken(sizes, mistakes, how.get("vocabulary", VOCABULARY))
    draft = DraftModel(
        executable, sizes, context_tokens=how.get("context_tokens", 1000),
        vocabularies=(executable.vocabulary, VOCABULARY), clock=Ticks(tick_s),
    )  # fmt: skip
    return draft, executable


class Eager(Speculator):
    """Has the draft model guess at random times, whatever it costs."""

    def __init__(self, draft: DraftModel, seed: int) -> None:
        super().__init__(1000, draft)
        self.draft, self.draw = draft, random.Random(seed)

    def choose(self, sequences: SequenceOf[Sequence], room: int) -> list[tuple[int, list[int]]]:
        wanted: list[tuple[Sequence, int]] = []
        for sequence in sequences:
            most = min(room, sequence.longest - len(sequence.tokens) - 1, self.draw.randrange(7))
            wanted.append((sequence, len(self.draft.chances(sequence, most))))
            room -= wanted[-1][1]
            self._whose[sequence.request.request_id] = self.draft
        chosen = [index for index, (_, count) in enumerate(wanted) if count]
        return list(zip(chosen, self.draft.propose([wanted[index] for index in chosen]), strict=True))


class DraftedWorld(World):
    """With a draft model, of whose memory, knowledge and speed there may be little."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        draw = random.Random(seed)
        self.short = self.found = 0
        self.sizes = Limits(
            step_tokens=draw.choice([self.limits.step_tokens, 40]),
            sequences=self.limits.sequences,
            logit_rows=self.limits.sequences,
            blocks=draw.choice([6, 12, 30, 400]),
            block_tokens=draw.choice([2, 4, 16]),
            cache_dtype="float32",
            threads=1,
        )
        self.draft, self.executable = model(
            self.sizes, mistakes=draw.choice([0.0, 0.1, 0.4]), tick_s=draw.choice([0.0001, 0.001, 0.02]),
            context_tokens=draw.choice([40, 1000]), vocabulary=VOCABULARY - draw.choice([0, 0, 1]),
        )  # fmt: skip
        self.engine, self.model = engine_for(self.limits, self.context_tokens, self.draft)
        if seed % 4:
            use(self.engine, Eager(self.draft, seed))

    def step(self) -> None:
        before_s, known = self.draft.spent_s, set(self.draft._following.followers)
        super().step()
        self.now_s += self.draft.spent_s - before_s
        following = self.draft._following
        running = {each.request.request_id: each for each in self.engine._scheduler._running}
        assert following.followers.keys() <= running.keys(), "blocks of somebody who has left"
        check_space(following.space, list(following.followers.values()), self.sizes)
        for name, follower in following.followers.items():
            assert follower.tokens is running[name].tokens
            assert follower.computed < len(follower.tokens)
            assert follower.blocks == -(-follower.computed // self.sizes.block_tokens), "a guess's block was kept"
            assert (follower.guesses, follower.wanted) == ([], 0)
            self.short += not self.draft._following.most(follower) > 0
            self.found += name not in known and bool(follower.nodes)


def test_random_worlds_with_a_draft_model() -> None:
    drafted = accepted = preempted = short = found = 0
    for seed in (0, 3, 7, 8, 9, 10, 13, 14, 16, 17, 22, 23, 25):
        print("seed", seed)
        world = DraftedWorld(seed)
        world.run(arrivals=60)
        for request in world.requests.values():
            world.check_reply(request)
        assert not world.draft._following.followers
        space = world.draft._following.space
        assert space.pool.free + space.tree.idle == space.pool.total
        drafted += world.draft.drafted
        accepted += world.draft.accepted
        preempted += world.preempted
        short += world.short
        found += world.found
    print(drafted, accepted, preempted, short, found)
    assert accepted > 1000
    assert drafted > accepted + 200
    assert min(preempted, short, found) > 20, "not everything was tried"
