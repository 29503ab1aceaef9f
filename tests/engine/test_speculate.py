"""Speculative decoding: the same output, and only where it pays."""

import random
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf

import numpy as np
import pytest
from drafting import Eager, small_draft, use
from remembering import EOS, VOCABULARY, RememberingExecutable, continuation
from small_model import Reply, ask, limits, make_engine, no_tokenizer, run

from tokenworks.engine.adjust import Adjustment
from tokenworks.engine.engine import Engine
from tokenworks.engine.payoff import StepCost
from tokenworks.engine.sequence import Sequence
from tokenworks.engine.speculate import Speculator
from tokenworks.kernels.backend import Backend, Float32, RowChange, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.protocol.errors import EngineError
from tokenworks.protocol.messages import Finish, Generate, TokenChunk

FEW = 8
"""A vocabulary so small that every text repeats itself."""
PROMPT = [i * i % 7 for i in range(40)]


def requests(seed: int, vocabulary: int) -> list[Generate]:
    draw = random.Random(seed)
    made = []
    for i in range(6):
        how: dict[str, object] = {
            "temperature": draw.choice([0.0, 0.0, 0.3, 1.0]), "top_k": draw.choice([0, 3]), "seed": draw.randrange(99),
            "max_tokens": draw.choice([1, 2, 17, 60]), "ignore_eos": draw.random() < 0.5,
            "logprobs": draw.choice([None, None, 0, 2]),
        }  # fmt: skip
        if draw.random() < 0.4:
            how |= {
                "repetition_penalty": draw.choice([1.0, 1.1]), "frequency_penalty": draw.choice([0.0, 0.2]),
                "min_tokens": draw.choice([0, 9]), "logit_bias": {draw.randrange(vocabulary): draw.choice([-3.0, 1.0])},
            }  # fmt: skip
        if draw.random() < 0.3:
            how["stop_token_ids"] = (draw.randrange(vocabulary),)
        prompt = [draw.randrange(vocabulary) for _ in range(draw.choice([1, 2, 20, 50]))]
        made.append(ask(f"r{i}", prompt * draw.choice([1, 2]), **how))
    return made


class Guesser(Speculator):
    """Guesses at random, for every sequence in every step, whatever it costs."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        super().__init__(1000)
        self.draw, self.vocabulary = random.Random(seed), vocabulary

    def choose(self, sequences: SequenceOf[Sequence], room: int) -> Iterator[tuple[int, list[int]]]:
        for index, sequence in enumerate(sequences):
            most = min(room, self.draw.randrange(6), sequence.longest - len(sequence.tokens) - 1)
            guess = [self.draw.randrange(self.vocabulary) for _ in range(most)]
            draft = [token for token in guess if token not in sequence.ends]
            room -= len(draft)
            self._whose[sequence.request.request_id] = self._text
            yield index, draft


def flat(replies: dict[str, Reply]) -> dict[str, object]:
    return {
        name: (reply.tokens, reply.finish, reply.chunks[-1].stop_token_id, reply.logprobs)
        for name, reply in replies.items()
    }


@pytest.mark.parametrize("backend", [ReferenceBackend, CpuBackend])
def test_the_same_tokens_and_log_probabilities(backend: type[Backend]) -> None:
    drafted = accepted = preempted = hits = 0
    for seed in range(4 if backend is ReferenceBackend else 24):
        vocabulary = [FEW, 24][seed % 2]
        asked = requests(seed, vocabulary)
        plain = make_engine(backend(), limits(), vocabulary=vocabulary, eos=2, speculate=False)
        expected = flat(run(plain, *asked))
        assert plain.step(0.0).stats.draft_tokens_total == 0
        for sizes in (limits(), limits(blocks=41), limits(sequences=3, step_tokens=9, logit_rows=7)):
            engine = make_engine(backend(), sizes, vocabulary=vocabulary, eos=2)
            if seed % 4 < 2:
                use(engine, Guesser(seed, vocabulary))
            assert flat(run(engine, *asked)) == expected, (seed, sizes)
            assert flat(run(engine, *asked[:2])) == {name: expected[name] for name in ("r0", "r1")}, "with prefix hits"
            stats = engine.step(0.0).stats
            drafted += stats.draft_tokens_total
            accepted += stats.draft_tokens_accepted_total
            preempted += stats.preemptions_total
            hits += stats.prefix_hit_tokens_total
            assert stats.kv_blocks_used == 0
    assert min(hits, accepted, drafted - accepted) > 9, "not everything was tried"
    assert preempted > 3 or backend is ReferenceBackend


def test_accepted_tokens_come_together_in_fewer_steps() -> None:
    for how in ({}, {"logit_bias": {3: 100.0}}, {"logprobs": 1}):
        request = ask("a", PROMPT, max_tokens=100, ignore_eos=True, **how)
        steps = {}
        for speculate in (False, True):
            engine = make_engine(CpuBackend(), limits(), vocabulary=FEW, speculate=speculate)
            reply = run(engine, request)["a"]
            steps[speculate] = len(reply.chunks)
            assert sum(len(chunk.token_ids) for chunk in reply.chunks) == 100
        assert steps[False] == 100
        assert steps[True] < 90


@pytest.mark.parametrize("who", ["at random", "draft model"])
def test_sampling_follows_the_distribution_of_the_model(who: str) -> None:
    """The first three tokens of 3,000 samples, of which guesses give some: each triple as often as the model says."""
    count, prompt = 3000, PROMPT
    sizes = limits(sequences=15, step_tokens=90, blocks=600, logit_rows=64)
    engine = make_engine(CpuBackend(), sizes, vocabulary=FEW, eos=99)
    draft = small_draft(CpuBackend(), FEW, sizes=sizes)
    use(engine, Guesser(1, FEW) if who == "at random" else Eager(draft, 1))
    seen = np.zeros((FEW, FEW, FEW))
    for start in range(0, count, 15):
        asked = [ask(f"s{seed}", prompt, temperature=1.0, seed=seed, max_tokens=6) for seed in range(start, start + 15)]
        for reply in run(engine, *asked).values():
            seen[tuple(reply.tokens[:3])] += 1
    stats = engine.step(0.0).stats
    assert stats.draft_tokens_accepted_total > 200
    assert stats.draft_tokens_total > stats.draft_tokens_accepted_total + 200

    def after(*tokens: int) -> np.ndarray:
        plain = make_engine(CpuBackend(), limits(), vocabulary=FEW, eos=99, speculate=False)
        [at] = run(plain, ask("p", [*prompt, *tokens], logprobs=FEW, max_tokens=1))["p"].chunks[0].logprobs
        return np.exp([logprob for _, logprob in sorted(at.top)])

    expected = np.array(
        [[p * q * after(i, j) for j, q in enumerate(after(i))] for i, p in enumerate(after())]
    ).ravel() * count  # fmt: skip
    observed = seen.ravel()
    often = expected >= 5
    expected = np.append(expected[often], expected[~often].sum())
    observed = np.append(observed[often], observed[~often].sum())
    freedom = len(expected) - 1
    assert freedom > 30
    deviation = ((observed - expected) ** 2 / expected).sum()
    assert deviation < freedom + 3.1 * np.sqrt(2 * freedom) + 5, "about one chance in a thousand"


def remembering(**changes: int) -> tuple[Engine, RememberingExecutable]:
    sizes = limits(**changes)
    model = RememberingExecutable(sizes)
    engine = Engine(
        model, sizes, eos_token_ids=frozenset({EOS}), context_tokens=200, vocabulary=VOCABULARY,
        tokenizer_json=no_tokenizer,
    )  # fmt: skip
    return engine, model


def test_numbers_that_are_not_finite_behind_a_wrong_guess_harm_nobody() -> None:
    prompt = [3, 1, 4, 1, 5] * 4
    truth = [*prompt, *continuation(prompt, 100, ignore_eos=True)]
    seen = 0
    for broken_after in (1000, *range(30, 60)):
        broken_from = len(prompt) + broken_after
        engine, model = remembering()
        inner, poisoned = model.run, 0

        def run_poisoned(batch: StepBatch, inner=inner, broken_from=broken_from) -> Float32:
            nonlocal poisoned
            logits = inner(batch)
            for r, row in enumerate(batch.logit_rows.tolist()):
                position = int(batch.positions[row])
                wrong = position < len(truth) and batch.tokens[row] != truth[position]
                if wrong or position >= broken_from:
                    logits[r, 5] = np.nan
                    poisoned += wrong
            return logits

        model.run = run_poisoned  # type: ignore[method-assign]
        reply = run(engine, ask("a", prompt, max_tokens=80, ignore_eos=True))["a"]
        assert reply.finish is (Finish.LENGTH if broken_after == 1000 else Finish.FAILED)
        assert reply.tokens == truth[len(prompt) :][: min(80, broken_after + 1)], broken_after
        seen += poisoned
    assert seen > 5


def test_what_fails_after_right_guesses_fails_after_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    change = Adjustment.change

    def failing(adjustment: Adjustment, row: int, output_tokens: int) -> RowChange:
        if output_tokens == 40:
            raise EngineError("no token is left")
        return change(adjustment, row, output_tokens)

    monkeypatch.setattr(Adjustment, "change", failing)
    engine, _ = remembering()
    prompt = [3, 1, 4, 1, 5] * 4
    replies = run(engine, *(ask(f"{i}", prompt[i:], max_tokens=80, ignore_eos=True, min_tokens=1) for i in range(8)))
    for i, reply in enumerate(replies.values()):
        assert (reply.finish, reply.error) == (Finish.FAILED, "no token is left")
        assert reply.tokens == continuation(prompt[i:], 40, ignore_eos=True)
    assert engine.step(0.0).stats.draft_tokens_accepted_total > 20


def test_a_cancellation_while_drafts_run() -> None:
    engine, _ = remembering()
    prompt = [7, 8] * 8
    engine.add(ask("a", prompt, max_tokens=100, ignore_eos=True), 0.0)
    scheduler = engine._scheduler
    chunks: list[TokenChunk] = []
    for step in range(50):
        engine.step(step * 0.01)
        plan = engine._plan(None)
        if plan.pieces[0].draft:
            engine.cancel("a")
            chunks = scheduler.commit(plan, engine._runner.look(engine._runner.begin(plan)))
            break
        scheduler.commit(plan, engine._runner.look(engine._runner.begin(plan)))
    assert [(chunk.finish, chunk.token_ids) for chunk in chunks] == [(Finish.CANCELLED, ())]
    assert scheduler.stats().kv_blocks_used == 0


def looping(index: int) -> Sequence:
    return Sequence(ask(f"{index}", [1, 2, 3] * 20, max_tokens=99), (0.0, index), frozenset(), 1000)


def taught(cost: dict[int, float]) -> Speculator:
    speculator = Speculator(128)
    for _ in range(20):
        for tokens, seconds in cost.items():
            speculator.observe(tokens, seconds)
    return speculator


def test_guesses_run_only_where_they_pay() -> None:
    one, many = [looping(0)], [looping(i) for i in range(16)]
    bound_by_memory = {2**k: 0.004 for k in range(8)}
    [(index, draft)] = taught(bound_by_memory).choose(one, 100)
    assert (index, draft) == (0, [1, 2, 3] * 6 + [1, 2])
    assert [len(draft) for _, draft in taught(bound_by_memory).choose(many, 48)] == [3] * 16
    bound_by_arithmetic = {2**k: 0.004 * 2**k for k in range(8)}
    assert taught(bound_by_arithmetic).choose(one, 100) == []
    assert taught(bound_by_arithmetic).choose(many, 48) == []
    between = {2**k: 0.004 + 0.001 * max(0, 2**k - 4) for k in range(8)}
    [(_, few)] = taught(between).choose(one, 100)
    assert 2 <= len(few) < 20
    assert Speculator(128).choose(one, 100) == [], "nothing is known of the cost yet"


def test_nothing_to_guess_nothing_run() -> None:
    sequence = Sequence(ask("a", list(range(50)), max_tokens=99), (0.0, 1), frozenset(), 1000)
    assert taught({1: 0.004}).choose([sequence], 100) == []


def test_a_guess_never_passes_an_end() -> None:
    for sequence in (
        Sequence(ask("stop", [1, 2, 3] * 20, max_tokens=99, stop_token_ids=(3,)), (0.0, 1), frozenset(), 1000),
        Sequence(ask("length", [1, 2, 3] * 20, max_tokens=3), (0.0, 1), frozenset(), 1000),
        Sequence(ask("context", [1, 2, 3] * 20, max_tokens=99), (0.0, 1), frozenset(), 63),
    ):
        [(_, draft)] = taught({1: 0.004}).choose([sequence], 100)
        assert draft == [1, 2]


def test_the_cost_of_a_step_is_learnt() -> None:
    true = {1: 0.0037, 2: 0.0059, 3: 0.008, 4: 0.009, 6: 0.012, 8: 0.013, 12: 0.0135, 16: 0.015}
    cost = StepCost(64)
    assert cost.of(1) == 0
    draw = random.Random(1)
    for _ in range(2000):
        tokens = draw.choice(list(true))
        cost.observe(tokens, true[tokens] * draw.uniform(0.9, 1.1))
    for tokens, seconds in true.items():
        assert cost.of(tokens) == pytest.approx(seconds, rel=0.2)
    before = cost.of(1)
    cost.observe(1, 10.0)
    assert cost.of(1) < 1.2 * before, "one slow step says little"
    assert cost.of(64) > cost.of(16), "a size not seen yet"


def test_a_size_not_seen_for_long_is_tried_again() -> None:
    cost = StepCost(64)
    for _ in range(40):
        cost.observe(1, 0.004)
        cost.observe(8, 0.1)
    assert cost.of(8) > 0.08
    for _ in range(1000):
        cost.observe(1, 0.004)
    assert cost.of(8) < 0.03
