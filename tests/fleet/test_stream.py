"""What a slow reader finds, and what a second worker is told."""

import asyncio

import pytest

from tokenworks.fleet.stream import TokenStream, merge
from tokenworks.protocol.errors import WorkerLost
from tokenworks.protocol.messages import Finish, Generate, TokenChunk, TokenLogprobs
from tokenworks.protocol.sampling import Sampling

ASKED = Generate("r", (1, 2), Sampling(max_tokens=500, seed=0), output_ids=(7,))


def logprobs(token_id: int) -> tuple[TokenLogprobs, ...]:
    return (TokenLogprobs(token_id, -1.0, 1),)


def test_merged_chunks_lose_nothing():
    chunks = [
        TokenChunk("r", (1,), logprobs=logprobs(1), prompt_logprobs=logprobs(9), cached_tokens=16),
        TokenChunk("r", (2, 3), logprobs=logprobs(2) + logprobs(3)),
        TokenChunk("r", (4,), logprobs=logprobs(4), finish=Finish.STOP, stop_token_id=4),
    ]
    assert merge(chunks) == TokenChunk(
        "r",
        (1, 2, 3, 4),
        logprobs=tuple(TokenLogprobs(token_id, -1.0, 1) for token_id in (1, 2, 3, 4)),
        prompt_logprobs=logprobs(9),
        cached_tokens=16,
        finish=Finish.STOP,
        stop_token_id=4,
    )


async def test_unread_chunks_stay_few_and_whole():
    stream = TokenStream(ASKED)
    for token_id in range(499):
        stream.take(TokenChunk("r", (token_id,)))
        assert len(stream._unread) <= 64
    assert (await stream.next()).token_ids == tuple(range(499))


def test_the_next_worker_is_told_what_was_received():
    stream = TokenStream(ASKED)
    assert stream.message() == ASKED
    stream.take(TokenChunk("r", (8, 9)))
    assert stream.made_tokens == 2
    assert stream.message().output_ids == (7, 8, 9)
    assert stream.made_tokens == 0


async def test_the_prompt_is_reported_once():
    stream = TokenStream(ASKED)
    first = TokenChunk("r", (8,), cached_tokens=32, prompt_logprobs=logprobs(2))
    stream.take(first)
    assert await stream.next() == first
    stream.take(TokenChunk("r", (9,), cached_tokens=48, prompt_logprobs=logprobs(2), finish=Finish.LENGTH))
    assert await stream.next() == TokenChunk("r", (9,), finish=Finish.LENGTH)


async def test_what_came_before_a_failure_is_read_before_it():
    stream = TokenStream(ASKED)
    reader = asyncio.create_task(stream.next())
    await asyncio.sleep(0)
    stream.take(TokenChunk("r", (8,)))
    stream.fail(WorkerLost("gone"))
    assert (await reader).token_ids == (8,)
    with pytest.raises(WorkerLost, match="gone"):
        await stream.next()
