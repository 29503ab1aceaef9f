"""A draft model: the same output whatever it says, its cache's accounts in order, its time well spent or not at all."""

import random
from collections.abc import Sequence as SequenceOf

import numpy as np
import pytest
from drafting import Eager, Ticks, small_draft, use
from remembering import VOCABULARY, RememberingExecutable
from small_model import ask, limits, make_engine, run
from test_speculate import flat, requests
from worlds import World, check_space, engine_for

from tokenworks.engine.draft import DraftModel
from tokenworks.engine.proposer import FromText
from tokenworks.engine.sequence import Sequence
from tokenworks.engine.speculate import Speculator
from tokenworks.kernels.backend import Backend, Float32, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend


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


@pytest.mark.parametrize("backend", [ReferenceBackend, CpuBackend])
def test_the_same_tokens_and_log_probabilities(backend: type[Backend]) -> None:
    drafted = accepted = preempted = hits = 0
    for seed in range(2 if backend is ReferenceBackend else 12):
        vocabulary = [8, 24][seed % 2]
        asked = requests(seed, vocabulary)
        expected = flat(run(make_engine(backend(), limits(), vocabulary=vocabulary, eos=2, speculate=False), *asked))
        for number, sizes in enumerate((limits(), limits(blocks=41), limits(sequences=3, step_tokens=9, logit_rows=7))):
            own = limits(blocks=30) if number == 1 else sizes
            draft = small_draft(backend(), vocabulary, seed=3 + seed % 3 // 2, sizes=own)
            engine = make_engine(backend(), sizes, vocabulary=vocabulary, eos=2, draft=draft)
            if seed % 4 < 2:
                use(engine, Eager(draft, seed))
            assert flat(run(engine, *asked)) == expected, (seed, sizes)
            assert flat(run(engine, *asked[:2])) == {name: expected[name] for name in ("r0", "r1")}, "with prefix hits"
            stats = engine.step(0.0).stats
            drafted += draft.drafted
            accepted += draft.accepted
            preempted += stats.preemptions_total
            hits += stats.prefix_hit_tokens_total
            assert stats.draft_tokens_total >= draft.drafted
            assert stats.kv_blocks_used == 0
    assert min(hits, accepted, drafted - accepted) > 9, "not everything was tried"
    assert preempted > 0 or backend is ReferenceBackend


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
    assert accepted > 600
    assert drafted > accepted + 200
    assert min(preempted, short, found) > 20, "not everything was tried"


class Guesses(FromText):
    """A model of known worth: its chances, its passes' price, what it has not seen."""

    def __init__(self, chance: float, pass_s: float, lacking: int = 1) -> None:
        super().__init__()
        self.chance, self.pass_s, self.unseen, self.tried = chance, pass_s, lacking, 0

    def chances(self, sequence: Sequence, most: int) -> list[float]:
        return [self.chance] * most

    def lacking(self, sequence: Sequence) -> int:
        return self.unseen

    def seconds(self, tokens: int) -> float:
        return self.pass_s * max(1.0, tokens / 32) if tokens else 0.0

    def propose(self, wanted: SequenceOf[tuple[Sequence, int]]) -> list[list[int]]:
        self.tried += len(wanted)
        return [[1] * count for _, count in wanted]


def taught(model: Guesses) -> Speculator:
    """A step of one token takes 10 ms, each further one a tenth of that."""
    speculator = Speculator(128, model)
    for _ in range(20):
        for tokens in (1, 2, 4, 8, 16, 32, 64):
            speculator.observe(tokens, 0.009 + 0.001 * tokens)
    speculator._to_try_s = 0.0
    return speculator


def talking(prompt: list[int], max_tokens: int = 500) -> Sequence:
    return Sequence(ask("a", prompt, max_tokens=max_tokens), (0.0, 1), frozenset(), 1000)


DIFFERENT = list(range(50))
"""Nothing in it to look up."""


def drafts(model: Guesses, sequence: Sequence) -> int:
    return sum(len(draft) for _, draft in taught(model).choose([sequence], 100))


def test_a_model_guesses_as_far_as_it_pays() -> None:
    cheap, dear = 0.001, 0.02
    assert drafts(Guesses(0.99, cheap), talking(DIFFERENT)) > 8
    assert 2 <= drafts(Guesses(0.8, cheap), talking(DIFFERENT)) <= 8
    assert drafts(Guesses(0.1, cheap), talking(DIFFERENT)) == 0
    assert drafts(Guesses(0.99, dear), talking(DIFFERENT)) == 0
    assert drafts(Guesses(0.99, cheap), talking(DIFFERENT, max_tokens=3)) == 2


def test_what_the_model_has_not_seen_is_weighed_against_what_it_would_have_saved() -> None:
    def steps_until_it_guesses(lacking: int, max_tokens: int) -> int:
        model, sequence = Guesses(0.9, 0.001, lacking), talking(DIFFERENT, max_tokens)
        speculator = taught(model)
        steps = 1
        while not any(draft for _, draft in speculator.choose([sequence], 100)) and steps < max_tokens:
            steps += 1
        return steps

    assert steps_until_it_guesses(2, 500) == 1
    assert 2 <= steps_until_it_guesses(900, 500) < 10
    assert 20 < steps_until_it_guesses(9000, 500) < 100
    assert steps_until_it_guesses(900, 3) == 3


def test_the_text_guesses_where_it_is_surer() -> None:
    repeated = talking([1, 2, 3] * 20)
    for chance, tried in ((0.5, False), (0.999, True)):
        model = Guesses(chance, 0.0001)
        [(_, draft)] = taught(model).choose([repeated], 100)
        assert draft[:3] == ([1, 1, 1] if tried else [1, 2, 3])
        assert bool(model.tried) is tried


def test_a_model_that_does_not_pay_is_tried_for_a_small_part_of_the_time() -> None:
    model = Guesses(0.05, 0.005)
    speculator, sequence = taught(model), talking(DIFFERENT)
    for _ in range(10_000):
        tokens = 1 + len(speculator.choose([sequence], 100))
        speculator.observe(tokens, 0.009 + 0.001 * tokens)
    assert 10_000 * 0.01 * 0.01 < model.tried * (0.005 + 0.001) < 10_000 * 0.01 * 0.03
    model.chance = 0.95
    assert speculator.choose([sequence], 100)


def test_another_model_is_left_off_by_itself_and_the_same_one_is_not() -> None:
    prompt, tokens = [i * i % 97 for i in range(60)], 200
    steps = {}
    for seed in (3, 4):
        draft = small_draft(CpuBackend(), 128, seed=seed, sizes=limits(blocks=400))
        engine = make_engine(CpuBackend(), limits(blocks=400), context_tokens=500, draft=draft)
        how = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.4}
        run(engine, *(ask(str(i), prompt[i:], seed=i, **how) for i in range(3)))
        steps[seed] = engine.step(0.0).stats.steps_total, draft.drafted, draft.accepted
    print(steps)
    (itself, drafted, accepted), (another, tried, lucky) = steps[3], steps[4]
    assert itself < tokens * 0.8
    assert accepted > 0.4 * drafted > 80
    assert another > tokens * 0.85
    assert lucky < 0.3 * tried
    assert tried < 0.2 * 3 * tokens
