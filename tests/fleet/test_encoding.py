"""Embed requests cut into steps: everyone is answered once, in order, with the vectors of its own inputs."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.fleet.encoding import EncoderQueue
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.messages import Embed, Embedded

STEP_TOKENS = 10
BAD = 13


class SumEncoder:
    """Encodes an input as (sum of its tokens, their number), and refuses BAD ones as the real one refuses."""

    def __init__(self) -> None:
        self.step_tokens: list[int] = []

    def embed(self, inputs: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        if any(BAD in tokens for tokens in inputs):
            raise InvalidRequest("an input is bad", param="input")
        self.step_tokens.append(sum(map(len, inputs)))
        return np.array([[sum(tokens), len(tokens)] for tokens in inputs], np.float32).reshape(-1, 2)


def expected(inputs: Sequence[Sequence[int]]) -> bytes:
    return np.array([[sum(tokens), len(tokens)] for tokens in inputs], "<f4").tobytes()


def run(queue: EncoderQueue) -> list[Embedded]:
    answers: list[Embedded] = []
    while queue.busy:
        answers += queue.step()[0]
    return answers


INPUTS = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=STEP_TOKENS).map(tuple), max_size=8).map(tuple)


@given(st.lists(INPUTS, max_size=8))
def test_every_request_gets_its_own_vectors(requests):
    encoder = SumEncoder()
    queue = EncoderQueue(encoder, step_tokens=STEP_TOKENS)
    for number, inputs in enumerate(requests):
        queue.add(Embed(str(number), inputs))
    answers = {answer.request_id: answer for answer in run(queue)}
    assert len(answers) == len(requests)
    for number, inputs in enumerate(requests):
        answer = answers[str(number)]
        if any(BAD in tokens for tokens in inputs):
            assert answer.error == "an input is bad"
        else:
            assert (answer.error, answer.width, answer.vectors) == (None, 2, expected(inputs))
    assert max(encoder.step_tokens, default=0) <= STEP_TOKENS


def test_short_requests_share_a_step_and_a_long_one_is_cut():
    encoder = SumEncoder()
    queue = EncoderQueue(encoder, step_tokens=STEP_TOKENS)
    for name in "abc":
        queue.add(Embed(name, ((1, 2),)))
    queue.add(Embed("long", ((1,) * 9, (1,) * 9)))
    done, step = queue.step()
    assert [answer.request_id for answer in done] == ["a", "b", "c"]
    assert step.stats.running == 1
    assert [answer.request_id for answer in run(queue)] == ["long"]
    assert encoder.step_tokens == [6, 9, 9]


def test_a_cancelled_request_is_forgotten_between_steps():
    queue = EncoderQueue(SumEncoder(), step_tokens=STEP_TOKENS)
    queue.add(Embed("long", ((1,) * 9, (1,) * 9)))
    queue.step()
    queue.cancel("long")
    queue.cancel("unknown")
    assert not queue.busy
