"""The engine on models that carry a state from token to token: the same bits whatever else happens."""

import random
from collections.abc import Sequence as SequenceOf

import pytest
from drafting import Eager, small_draft, use
from family_models import engine_of
from small_model import Reply, ask, limits, run

from tokenworks.engine.engine import Engine
from tokenworks.engine.sequence import Sequence
from tokenworks.engine.speculate import Speculator
from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.protocol.messages import Finish, Generate

HYBRID = "Mamba-2 and attention"
NAMES = ("Mamba-2", HYBRID, "delta nets and gated attention")
PROMPT = [(7 * i * i + 3) % 120 for i in range(30)]


def sizes(**changes: int) -> Limits:
    return limits(**{"state_slots": 20, **changes})


def engine_with(name: str, size: Limits, context_tokens: int = 200) -> Engine:
    return engine_of(name, CpuBackend(), size, context_tokens)


def requests() -> list[Generate]:
    return [
        ask("greedy", PROMPT, max_tokens=25, logprobs=3),
        ask("sampled", PROMPT, temperature=0.9, seed=5, max_tokens=25, logprobs=3),
        ask("cut", PROMPT[:17], temperature=1.3, seed=6, max_tokens=30, logprobs=3),
        ask("other", PROMPT[5:12], temperature=0.5, logprobs=3),
        ask("short", [5], temperature=1.0, max_tokens=9, logprobs=3),
        ask("scored", PROMPT[2:], max_tokens=4, prompt_logprobs=2, logprobs=3),
    ]


def everything(reply: Reply) -> object:
    """Tokens, the bits of all log-probabilities, and how it ended."""
    return reply.tokens, reply.logprobs, [c.prompt_logprobs for c in reply.chunks if c.prompt_logprobs], reply.finish


@pytest.mark.parametrize("name", NAMES)
def test_alone_as_in_a_batch_after_preemption_and_in_any_chunks(name: str) -> None:
    asked = requests()
    expected = {}
    for request in asked:
        engine = engine_with(name, sizes())
        expected[request.request_id] = everything(run(engine, request)[request.request_id])
    preemptions = []
    for size in (
        sizes(), sizes(blocks=18), sizes(blocks=18, state_slots=7), sizes(step_tokens=7, sequences=3, state_slots=4),
        sizes(block_tokens=16, blocks=16, state_slots=2), sizes(block_tokens=1, blocks=300, step_tokens=5),
    ):  # fmt: skip
        engine = engine_with(name, size)
        replies = run(engine, *asked)
        for request_id, reply in replies.items():
            assert everything(reply) == expected[request_id], (request_id, size)
        preemptions.append(engine.step(0.0).stats.preemptions_total)
    assert preemptions[1] > 0
    assert preemptions[2] > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_from_a_snapshot(name: str) -> None:
    for request in requests()[:-1]:
        engine = engine_with(name, sizes())
        first, second = (run(engine, request)[request.request_id] for _ in range(2))
        assert everything(second) == everything(first)
        assert (first.cached_tokens, second.cached_tokens) == (0, (len(request.prompt_ids) - 1) // 4 * 4)


def test_where_prompts_part_a_snapshot_is_left() -> None:
    engine = engine_with(HYBRID, sizes())
    cached = []
    for number in range(3):
        prompt = [*PROMPT[:18], number, *PROMPT[20:]]
        reply = run(engine, ask("a", prompt, logprobs=3))["a"]
        cached.append(reply.cached_tokens)
        alone = run(engine_with(HYBRID, sizes()), ask("a", prompt, logprobs=3))["a"]
        assert everything(reply) == everything(alone)
    assert cached == [0, 0, 16], "the second shows where they part, the third begins there"


def test_a_conversation_goes_on_from_what_was_written() -> None:
    engine = engine_with(HYBRID, sizes())
    first = run(engine, ask("a", PROMPT, max_tokens=20, ignore_eos=True))["a"]
    turn = ask("b", [*PROMPT, *first.tokens, 3, 4, 5], logprobs=3)
    reply = run(engine, turn)["b"]
    assert reply.cached_tokens == (len(PROMPT) + 19) // 4 * 4
    alone = run(engine_with(HYBRID, sizes()), turn)["b"]
    assert everything(reply) == everything(alone)


def test_a_burst_with_the_same_prompt_computes_it_once() -> None:
    engine = engine_with(HYBRID, sizes(step_tokens=8))
    replies = run(engine, *[ask(str(i), PROMPT, seed=i, temperature=1.0) for i in range(6)])
    assert sorted(reply.cached_tokens for reply in replies.values()) == [0] + [28] * 5


def test_long_prompts_leave_snapshots_on_their_way() -> None:
    size = sizes(blocks=400, step_tokens=37)
    long = [i * i % 113 for i in range(600)]
    engine = engine_with(HYBRID, size, context_tokens=1000)
    run(engine, ask("a", long, max_tokens=1))
    reply = run(engine, ask("b", [*long[:520], 1, 2, 3], max_tokens=5, logprobs=1))["b"]
    assert reply.cached_tokens == 512


def test_carried_on_from_any_token_by_another_worker() -> None:
    for request in requests()[:5]:
        whole = run(engine_with(HYBRID, sizes()), request)[request.request_id]
        for done in (1, len(whole.tokens) // 2, len(whole.tokens) - 1):
            sent = tuple(whole.tokens[:done])
            carried = Generate(request.request_id, request.prompt_ids, request.sampling, sent)
            rest = run(engine_with(HYBRID, sizes()), carried)[request.request_id]
            assert [*sent, *rest.tokens] == whole.tokens
            assert rest.logprobs == whole.logprobs[done:]
            assert rest.finish == whole.finish


def test_a_cancelled_request_leaves_no_state_behind() -> None:
    engine = engine_with(HYBRID, sizes(step_tokens=6))
    for request in requests():
        engine.add(request, 0.0)
    for _ in range(3):
        assert engine.step(0.0).stats.state_slots_used > 0
    for request in requests():
        engine.cancel(request.request_id)
    step = engine.step(0.0)
    assert {chunk.finish for chunk in step.chunks} == {Finish.CANCELLED}
    assert step.stats.state_slots_used == 0
    assert step.stats.state_slots_total == 20


class HalfRight(Speculator):
    """Guesses what follows, which it has been told, and is wrong now and then."""

    def __init__(self, told: dict[str, list[int]], seed: int) -> None:
        super().__init__(1000)
        self.told, self.draw = told, random.Random(seed)
        self.right = self.wrong = 0

    def made(self, sequence: Sequence, drafted: int, made: int) -> None:
        self.right += made - 1
        self.wrong += drafted - (made - 1)

    def choose(self, sequences: SequenceOf[Sequence], room: int) -> list[tuple[int, list[int]]]:
        drafts = []
        for index, sequence in enumerate(sequences):
            made = len(sequence.tokens) - len(sequence.request.prompt_ids)
            count = max(0, min(room, self.draw.randrange(9), sequence.longest - len(sequence.tokens) - 1))
            draft = self.told[sequence.request.request_id][made : made + count]
            while draft and draft[-1] in sequence.ends:
                draft.pop()
            for place in range(len(draft)):
                if self.draw.random() < 0.15:
                    draft[place] = 119
            room -= len(draft)
            drafts.append((index, draft))
        return drafts


@pytest.mark.parametrize("name", NAMES)
def test_guesses_that_prove_wrong_leave_no_trace(name: str) -> None:
    """The state is that of the last token that proved right; from snapshots on the way others go on."""
    asked = requests()
    replies = run(engine_with(name, sizes()), *asked)
    expected = {request_id: everything(reply) for request_id, reply in replies.items()}
    told = {request_id: list(reply.tokens) for request_id, reply in replies.items()}
    for seed, size in enumerate(
        (sizes(state_slots=60), sizes(), sizes(state_slots=5), sizes(blocks=18), sizes(block_tokens=1, blocks=300))
    ):
        engine = engine_with(name, size)
        guessing = HalfRight(told, seed)
        use(engine, guessing)
        for _ in range(2):  # the second time from what the first left
            again = run(engine, *asked)
            assert {request_id: everything(reply) for request_id, reply in again.items()} == expected, size
        assert min(guessing.right, guessing.wrong) > (20 if size.state_slots > 5 else 0), "not everything was tried"
        turn = ask("turn", [*PROMPT, *told["greedy"], 3, 4, 5], max_tokens=8, logprobs=3)
        alone = run(engine_with(name, sizes()), turn)["turn"]
        use(engine, HalfRight({"turn": list(alone.tokens)}, seed))
        assert everything(run(engine, turn)["turn"]) == everything(alone)
        assert engine.step(0.0).stats.state_slots_used == 0


def test_a_draft_model_guesses_for_it() -> None:
    asked = requests()
    expected = {name: everything(reply) for name, reply in run(engine_with(HYBRID, sizes()), *asked).items()}
    engine = engine_with(HYBRID, sizes())
    draft = small_draft(CpuBackend(), 120, sizes=sizes())
    use(engine, Eager(draft, 1))
    assert {name: everything(reply) for name, reply in run(engine, *asked).items()} == expected
    assert draft.drafted > 20
