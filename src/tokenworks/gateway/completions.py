"""/v1/completions: raw prompts, as text or token ids; what evaluation harnesses and load generators call."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.types import ASGIApp

from tokenworks.gateway.chat import usage_body
from tokenworks.gateway.chat_types import UsageBody
from tokenworks.gateway.generation import Ticket, collect, generate
from tokenworks.gateway.http import json_response, openai_error, read_body
from tokenworks.gateway.logprobs import CompletionLogprobs, characters, completion_logprobs
from tokenworks.gateway.sampling import (
    Count,
    SamplingBody,
    StreamOptions,
    TokenId,
    TopLogprobs,
    sampling_from,
    sibling_sampling,
    stop_strings,
)
from tokenworks.gateway.serving import Serving, TextModel
from tokenworks.gateway.stream import DONE, EventStream, data_event, until_disconnect
from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.messages import Generate

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
Prompts = str | Annotated[list[str | int | TokenIds], Meta(min_length=1, max_length=2**20)]
"""A text, a list of texts, one list of token ids, or a list of such lists; a mixture is refused."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's own default for this path."""


class CompletionBody(SamplingBody, kw_only=True):
    """POST /v1/completions. Fields not named here are accepted and ignored."""

    prompt: Prompts
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    suffix: str | None = None
    best_of: Count | None = None
    add_special_tokens: bool | None = None


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(msgspec.Struct, kw_only=True):
    """The reply; also, chunk by chunk, the stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | UnsetType | None = UNSET


class _Prompt(msgspec.Struct):
    token_ids: list[int]
    text: str | None
    """As the client wrote it; None when it wrote token ids."""


async def completions(request: Request) -> ASGIApp:
    """POST /v1/completions."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, CompletionBody)
    model = await serving.generator(body.model)
    _refuse_unsupported(body)
    prompts = await _prompts(serving, model, body)
    reply = _Reply(body, model, prompts)
    if body.stream:
        return EventStream(_events(serving, reply), lambda error: data_event(openai_error(error)))
    with serving.admitted(len(reply.ticket.sequences)):
        wholes = await until_disconnect(request, collect(serving.pool, serving.metrics, reply.ticket))
    choices = []
    for index, whole in enumerate(wholes):
        text, logprobs = reply.echoed(index, whole.prompt_logprobs)
        if body.logprobs is not None:
            made = completion_logprobs(whole.logprobs, model.vocabulary, reply.as_ids, offset=len(text))
            logprobs = _joined(logprobs, made)
        choices.append(CompletionChoice(index, text + whole.text, logprobs, _finish_reason(whole.finish)))
    usage = usage_body(reply.ticket.usage)
    return json_response(
        Completion(id=reply.id, created=reply.created_s, model=body.model, choices=choices, usage=usage)
    )


def _refuse_unsupported(body: CompletionBody) -> None:
    if body.suffix:
        raise InvalidRequest("suffix: the models served here cannot fill in the middle", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("best_of other than n is not offered; ask for n and choose", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens 0 makes sense only with echo", param="max_tokens")


async def _prompts(serving: Serving, model: TextModel, body: CompletionBody) -> list[_Prompt]:
    prompt = body.prompt
    given: list[str | list[int]]
    if isinstance(prompt, str):
        given = [prompt]
    elif all(isinstance(item, int) for item in prompt):
        given = [prompt]  # type: ignore[list-item]
    elif all(isinstance(item, str) for item in prompt) or all(isinstance(item, list) for item in prompt):
        given = prompt  # type: ignore[assignment]
    else:
        raise InvalidRequest("prompt mixes texts and token ids", param="prompt")
    serving.check_possible(len(given) * (body.n or 1))
    result = []
    for item in given:
        await asyncio.sleep(0)  # many texts are long work: streams go on in between
        if isinstance(item, str):
            special = body.add_special_tokens is not False
            result.append(_Prompt(await model.encode(item, special=special, param="prompt"), item))
        else:
            if min(item) < 0:
                raise InvalidRequest("token ids start at 0", param="prompt")
            model.check_ids(item, "prompt")
            result.append(_Prompt(item, None))
        if not result[-1].token_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
    return result


class _Reply:
    """What whole and streamed replies share."""

    def __init__(self, body: CompletionBody, model: TextModel, prompts: list[_Prompt]) -> None:
        self.body, self.model, self.prompts = body, model, prompts
        self.created_s = int(wall_time_s())
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.as_ids = bool(body.return_tokens_as_token_ids)
        self.n = body.n or 1
        asked = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        sequences = []
        for number, prompt in enumerate(prompts):
            sampling = sampling_from(
                body,
                max_tokens=min(asked, model.room(len(prompt.token_ids), body.max_tokens, "prompt")),
                vocabulary_tokens=model.vocabulary_tokens,
                logprobs=body.logprobs,
                prompt_logprobs=body.logprobs if body.echo else None,
            )
            sequences += [
                Generate(
                    request_id=f"{self.id}-{number * self.n + place}",
                    prompt_ids=tuple(prompt.token_ids),
                    sampling=sibling_sampling(sampling, place),
                    priority=body.priority or 0,
                )
                for place in range(self.n)
            ]
        self.ticket = Ticket(
            model=model.name,
            vocabulary=model.vocabulary,
            sequences=tuple(sequences),
            per_prompt=self.n,
            stops=stop_strings(body.stop),
        )

    def echoed(self, index: int, prompt_logprobs: tuple[object, ...]) -> tuple[str, CompletionLogprobs | None]:
        """The prompt's text and logprobs, where the client wants it repeated."""
        if not self.body.echo:
            return "", None
        prompt = self.prompts[index // self.n]
        text = prompt.text
        if text is None:
            text = self.model.tokenizer.decode(prompt.token_ids, skip_special=False)
        if self.body.logprobs is None:
            return text, None
        logprobs = completion_logprobs(
            prompt_logprobs,  # type: ignore[arg-type]
            self.model.vocabulary,
            self.as_ids,
            offset=len(text) - characters(self.model.vocabulary, prompt.token_ids),
            first_id=prompt.token_ids[0],
        )
        return text, logprobs


def _joined(first: CompletionLogprobs | None, second: CompletionLogprobs) -> CompletionLogprobs:
    if first is None:
        return second
    names = CompletionLogprobs.__struct_fields__
    return CompletionLogprobs(*(getattr(first, name) + getattr(second, name) for name in names))


def _finish_reason(finish: str) -> Literal["stop", "length"]:
    return "length" if finish == "length" else "stop"


async def _events(serving: Serving, reply: _Reply) -> AsyncGenerator[bytes, None]:
    body, ticket, vocabulary = reply.body, reply.ticket, reply.model.vocabulary
    options = body.stream_options or StreamOptions()
    chunk = Completion(id=reply.id, created=reply.created_s, model=body.model, choices=[])
    if options.include_usage:
        chunk.usage = None
    offsets: dict[int, int] = {}
    with serving.admitted(len(ticket.sequences)):
        async with aclosing(generate(serving.pool, serving.metrics, ticket)) as deltas:
            async for delta in deltas:
                text, logprobs = "", None
                if delta.index not in offsets:
                    text, logprobs = reply.echoed(delta.index, delta.prompt_logprobs)
                    offsets[delta.index] = len(text)
                finish = _finish_reason(delta.finish) if delta.finish is not None else None
                text += delta.text
                if body.logprobs is not None and delta.logprobs:
                    at = offsets[delta.index]
                    made = completion_logprobs(delta.logprobs, vocabulary, reply.as_ids, offset=at)
                    logprobs = _joined(logprobs, made)
                    offsets[delta.index] += characters(vocabulary, (entry.token_id for entry in delta.logprobs))
                if text or logprobs is not None or finish is not None:
                    chunk.choices = [CompletionChoice(delta.index, text, logprobs, finish)]
                    if options.continuous_usage_stats:
                        chunk.usage = usage_body(ticket.usage)
                    yield data_event(chunk)
    if options.include_usage:
        chunk.choices, chunk.usage = [], usage_body(ticket.usage)
        yield data_event(chunk)
    yield DONE
