"""The one core under every text API: prompts in, a stream of text deltas out, each sequence ended exactly once.

Whole replies are this stream collected. Leaving the stream early, in any way, cancels what still runs.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import msgspec

from tokenworks.gateway.detokenise import Detokeniser, Vocabulary
from tokenworks.gateway.stops import StopStrings
from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import EngineError, InvalidRequest, TokenworksError, WorkerLost
from tokenworks.protocol.messages import NOT_FINITE, Finish, Generate, TokenChunk, TokenLogprobs
from tokenworks.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from tokenworks.fleet.pool import Pool


@dataclass(slots=True)
class Usage:
    """Tokens of one request, all its sequences together; a prompt shared by n sequences counts once."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request as the core takes it."""

    model: str
    vocabulary: Vocabulary
    sequences: tuple[Generate, ...]
    """Sequences of one prompt lie side by side."""
    per_prompt: int = 1
    """n: sequences per prompt."""
    stops: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    arrived_s: float = field(default_factory=now_s)


class Delta(msgspec.Struct, frozen=True):
    """What one step added to one sequence."""

    index: int
    text: str
    made_tokens: int = 0
    """With the stop token, and with what the client is not shown."""
    token_ids: tuple[int, ...] = ()
    """Tokens without the stop token."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None
    """STOP or LENGTH, on the last delta."""
    stop: str | int | None = None
    """The stop string, or the stop token, that ended it."""


async def generate(pool: "Pool", metrics: Metrics, ticket: Ticket) -> AsyncGenerator[Delta, None]:
    """Every sequence's deltas as they come; `ticket.usage` is complete when this ends.

    Raises InvalidRequest, EngineError or WorkerLost when a sequence fails; the request's others are then cancelled.
    """
    ticket.usage.prompt_tokens = sum(len(s.prompt_ids) for s in ticket.sequences[:: ticket.per_prompt])
    if len(ticket.sequences) == 1:
        async with aclosing(_measured(pool, metrics, ticket, 0)) as deltas:
            async for delta in deltas:
                yield delta
        return
    # The first of n goes ahead: when it has spoken, its prompt is in the prefix cache and the others share the blocks.
    queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(maxsize=4 * len(ticket.sequences))
    spoke = [asyncio.Event() for _ in ticket.sequences[:: ticket.per_prompt]]

    async def pump(index: int) -> None:
        group, place = divmod(index, ticket.per_prompt)
        try:
            if place:
                await spoke[group].wait()
            async with aclosing(_measured(pool, metrics, ticket, index)) as deltas:
                async for delta in deltas:
                    spoke[group].set()
                    await queue.put(delta)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)
        finally:
            spoke[group].set()

    tasks = [asyncio.create_task(pump(index)) for index in range(len(ticket.sequences))]
    try:
        open_sequences = len(tasks)
        while open_sequences:
            item = await queue.get()
            if item is None:
                open_sequences -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _measured(pool: "Pool", metrics: Metrics, ticket: Ticket, index: int) -> AsyncGenerator[Delta, None]:
    """One sequence, with its times and its ending told to the metrics."""
    measured = metrics.request(ticket.model, ticket.arrived_s)
    finish = Finish.CANCELLED
    try:
        async with aclosing(_sequence(pool, ticket, index)) as deltas:
            async for delta in deltas:
                measured.tokens(delta.made_tokens, now_s())
                if delta.finish is not None:
                    finish = delta.finish
                yield delta
    except TokenworksError:
        finish = Finish.FAILED
        raise
    finally:
        measured.end(finish, now_s())


async def _sequence(pool: "Pool", ticket: Ticket, index: int) -> AsyncGenerator[Delta, None]:
    generate_message = ticket.sequences[index]
    min_tokens = generate_message.sampling.min_tokens
    counts_prompt = index % ticket.per_prompt == 0
    detokeniser, stops, usage = Detokeniser(ticket.vocabulary), StopStrings(ticket.stops), ticket.usage
    output_tokens = 0
    async with aclosing(_chunks(pool, ticket.model, generate_message)) as chunks:
        async for chunk in chunks:
            if counts_prompt:
                usage.cached_tokens += chunk.cached_tokens
            if chunk.error == NOT_FINITE:
                raise EngineError(f"{NOT_FINITE}: its weights may be damaged")
            if chunk.finish is Finish.FAILED:  # its own words are off: a grammar that grew too much, for one
                raise InvalidRequest(chunk.error or "the engine cannot do this request")
            if chunk.finish is Finish.CANCELLED:
                raise WorkerLost("the request was cancelled inside the factory")
            token_ids, finish = chunk.token_ids, chunk.finish
            stop: str | int | None = chunk.stop_token_id
            ended_by_token = stop is not None and token_ids[-1:] == (stop,)
            shown_ids = token_ids[:-1] if ended_by_token else token_ids
            if not ticket.stops:
                text = detokeniser.push(shown_ids)
                if finish is not None:
                    text += detokeniser.flush()
                taken = len(token_ids)
            else:
                # Token by token: what is cut off must not depend on how many tokens happened to arrive together.
                text = ""
                for taken, token_id in enumerate(shown_ids, 1):
                    armed = output_tokens + taken >= min_tokens
                    text += stops.push(detokeniser.push((token_id,)), armed=armed)
                    if stops.matched is not None:
                        shown_ids, finish, stop = shown_ids[:taken], Finish.STOP, stops.matched
                        break
                else:
                    taken = len(token_ids)
                    if finish is not None:
                        text += stops.push(detokeniser.flush()) + stops.flush()
            output_tokens += taken
            usage.completion_tokens += taken
            yield Delta(
                index, text, taken, shown_ids, chunk.logprobs[: len(shown_ids)], chunk.prompt_logprobs, finish, stop
            )
            if finish is not None:
                return
    raise EngineError("the engine ended the sequence without saying why")


def _chunks(pool: "Pool", model: str, request: Generate) -> AsyncGenerator[TokenChunk, None]:
    return cast("AsyncGenerator[TokenChunk, None]", pool.generate(model, request))


@dataclass(slots=True)
class Whole:
    """One sequence, collected."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish = Finish.STOP
    stop: str | int | None = None


async def collect(pool: "Pool", metrics: Metrics, ticket: Ticket) -> list[Whole]:
    """Run to the end: one Whole per sequence, in order."""
    texts: list[list[str]] = [[] for _ in ticket.sequences]
    wholes = [Whole() for _ in ticket.sequences]
    async with aclosing(generate(pool, metrics, ticket)) as deltas:
        async for delta in deltas:
            whole = wholes[delta.index]
            texts[delta.index].append(delta.text)
            whole.token_ids.extend(delta.token_ids)
            whole.logprobs.extend(delta.logprobs)
            if delta.prompt_logprobs:
                whole.prompt_logprobs = delta.prompt_logprobs
            if delta.finish is not None:
                whole.finish, whole.stop = delta.finish, delta.stop
    for whole, parts in zip(wholes, texts, strict=True):
        whole.text = "".join(parts)
    return wholes
