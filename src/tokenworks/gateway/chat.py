"""/v1/chat/completions: parse, submit, render."""

import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from tokenworks.gateway.chat_types import (
    AllowedToolsChoice,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChunkChoice,
    Content,
    DeltaToolCall,
    FunctionCall,
    ImagePart,
    MessageToolCall,
    NamedToolChoice,
    PromptTokensDetails,
    RefusalPart,
    ReplyMessage,
    TextPart,
    ToolMessage,
    UsageBody,
)
from tokenworks.gateway.generation import Delta, Ticket, Usage, collect, generate
from tokenworks.gateway.grammar import check_grammar
from tokenworks.gateway.http import json_response, openai_error, read_body
from tokenworks.gateway.logprobs import chat_logprobs
from tokenworks.gateway.pictures import Pictures
from tokenworks.gateway.prompt import Message, chat_prompt
from tokenworks.gateway.sampling import FinishReason, StreamOptions, sampling_from, sibling_sampling, stop_strings
from tokenworks.gateway.serving import Serving, TextModel
from tokenworks.gateway.stream import DONE, EventStream, data_event, until_disconnect
from tokenworks.gateway.tools import Tool, ToolCall, ToolParser, forced_grammar, named_tools
from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.messages import Finish, Generate
from tokenworks.protocol.sampling import Grammar


async def chat_completions(request: Request) -> ASGIApp:
    """POST /v1/chat/completions."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, ChatBody)
    model = await serving.generator(body.model)
    tools, grammar = chosen_tools(model, body)
    ticket = await _ticket(model, body, tools, grammar)
    reply = _Reply(body, model, ticket, tools, calls_forced=grammar is not None)
    if body.stream:
        return EventStream(_events(serving, reply), lambda error: data_event(openai_error(error)))
    with serving.admitted(len(ticket.sequences)):
        wholes = await until_disconnect(request, collect(serving.pool, serving.metrics, ticket))
    choices = []
    for index, whole in enumerate(wholes):
        parts = reply.parts(index, whole.text, whole.finish)
        calls = [MessageToolCall(id=c.id, function=FunctionCall(c.name, c.arguments)) for c in _calls(parts)]
        text = "".join(part for part in parts if isinstance(part, str))
        message = ReplyMessage(text or (None if calls else ""))
        if calls:
            message.tool_calls = calls
        logprobs = chat_logprobs(whole.logprobs, model.vocabulary, reply.as_ids) if body.logprobs else None
        choices.append(ChatChoice(index, message, logprobs, reply.finish_reason(index, whole.finish)))
    return json_response(
        ChatCompletion(
            id=reply.id, created=reply.created_s, model=body.model, choices=choices, usage=usage_body(ticket.usage)
        )
    )


class _Reply:
    """What whole and streamed replies share."""

    def __init__(
        self, body: ChatBody, model: TextModel, ticket: Ticket, tools: list[Tool], *, calls_forced: bool
    ) -> None:
        self.body, self.model, self.ticket = body, model, ticket
        self.id = ticket.sequences[0].request_id.rpartition("-")[0]
        self.created_s = int(wall_time_s())
        self.as_ids = bool(body.return_tokens_as_token_ids)
        self._parsers = [ToolParser(model.tool_format, tools, forced=calls_forced) for _ in ticket.sequences if tools]
        self.calls_made = [0] * len(ticket.sequences)

    def parts(self, index: int, text: str, finish: Finish | None) -> list[str | ToolCall]:
        if not self._parsers:
            return [text] if text else []
        parts = self._parsers[index].push(text, finish)
        self.calls_made[index] += sum(1 for _ in _calls(parts))
        return parts

    def finish_reason(self, index: int, finish: Finish) -> FinishReason:
        if finish is Finish.LENGTH:
            return "length"
        return "tool_calls" if self.calls_made[index] else "stop"


def _calls(parts: Iterable[str | ToolCall]) -> Iterable[ToolCall]:
    return (part for part in parts if isinstance(part, ToolCall))


async def _events(serving: Serving, reply: _Reply) -> AsyncGenerator[bytes, None]:
    body, ticket = reply.body, reply.ticket
    options = body.stream_options or StreamOptions()
    chunk = ChatChunk(id=reply.id, created=reply.created_s, model=body.model, choices=[])
    if options.include_usage:
        chunk.usage = None  # on every chunk but the last, as OpenAI has it
    begun: set[int] = set()

    def event(index: int, delta: ChatDelta, source: Delta | None = None, finish: FinishReason | None = None) -> bytes:
        choice = ChunkChoice(index, delta, None, finish)
        if body.logprobs and source is not None and source.logprobs:
            choice.logprobs = chat_logprobs(source.logprobs, reply.model.vocabulary, reply.as_ids)
        chunk.choices = [choice]
        if options.continuous_usage_stats:
            chunk.usage = usage_body(ticket.usage)
        return data_event(chunk)

    with serving.admitted(len(ticket.sequences)):
        async with aclosing(generate(serving.pool, serving.metrics, ticket)) as deltas:
            async for delta in deltas:
                index = delta.index
                if index not in begun:
                    begun.add(index)
                    yield event(index, ChatDelta(role="assistant", content=""))
                source: Delta | None = delta
                place = reply.calls_made[index]
                for part in reply.parts(index, delta.text, delta.finish):
                    if isinstance(part, str):
                        yield event(index, ChatDelta(content=part), source)
                    else:
                        call = DeltaToolCall(index=place, id=part.id, function=FunctionCall(part.name, part.arguments))
                        yield event(index, ChatDelta(tool_calls=[call]), source)
                        place += 1
                    source = None
                if delta.finish is not None:
                    yield event(index, ChatDelta(), source, reply.finish_reason(index, delta.finish))
                elif source is not None and body.logprobs and delta.logprobs:
                    yield event(index, ChatDelta(content=""), source)
    if options.include_usage:
        chunk.choices, chunk.usage = [], usage_body(ticket.usage)
        yield data_event(chunk)
    yield DONE


def usage_body(usage: Usage) -> UsageBody:
    total_tokens = usage.prompt_tokens + usage.completion_tokens
    return UsageBody(
        usage.prompt_tokens, usage.completion_tokens, total_tokens, PromptTokensDetails(usage.cached_tokens)
    )


def chosen_tools(model: TextModel, body: ChatBody) -> tuple[list[Tool], Grammar | None]:
    """The tools the model is shown, and the grammar when it must call one."""
    offered = [
        Tool(each.function.name, each.function.description or "", each.function.parameters or {"type": "object"})
        for each in body.tools or ()
    ]
    choice = body.tool_choice
    if isinstance(choice, NamedToolChoice):
        return choose_tools(model, named_tools(offered, [choice.function.name]), "required", parallel=False)
    if isinstance(choice, AllowedToolsChoice):
        names = [each.function.name for each in choice.allowed_tools.tools]
        return choose_tools(model, named_tools(offered, names), choice.allowed_tools.mode, body.parallel_tool_calls)
    return choose_tools(model, offered, choice or "auto", body.parallel_tool_calls)


def choose_tools(
    model: TextModel, offered: list[Tool], choice: str, parallel: bool | None
) -> tuple[list[Tool], Grammar | None]:
    """`choice` is none, auto or required."""
    if choice == "none":
        return [], None
    if choice == "required":
        if not offered:
            raise InvalidRequest("tool_choice asks for a call, but there are no tools", param="tool_choice")
        return offered, check_grammar(
            forced_grammar(model.tool_format, offered, parallel=parallel is not False), "tools"
        )
    return offered, None


async def _ticket(model: TextModel, body: ChatBody, tools: list[Tool], grammar: Grammar | None) -> Ticket:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    pictures = Pictures()
    messages = [template_message(message, pictures) for message in body.messages]
    prompt = await chat_prompt(model, messages, pictures, tools, body.chat_template_kwargs)
    max_tokens = body.max_completion_tokens or body.max_tokens
    sampling = sampling_from(
        body,
        max_tokens=model.room(len(prompt.ids), max_tokens, "messages"),
        vocabulary_tokens=model.vocabulary_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar,
    )
    n = body.n or 1
    request_id = f"chatcmpl-{uuid.uuid4().hex}"
    return Ticket(
        model=model.name,
        vocabulary=model.vocabulary,
        sequences=tuple(
            Generate(
                request_id=f"{request_id}-{place}",
                prompt_ids=prompt.ids,
                sampling=sibling_sampling(sampling, place),
                priority=body.priority or 0,
                pictures=prompt.pictures,
            )
            for place in range(n)
        ),
        per_prompt=n,
        stops=stop_strings(body.stop),
    )


def content_text(content: Content | None, pictures: Pictures, param: str = "messages") -> str:
    """The text of a content field, pictures noted; InvalidRequest for what is neither."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        elif isinstance(part, ImagePart):
            texts.append(pictures.at(part.image_url.url))
        else:
            kind = type(part).__struct_config__.tag
            raise InvalidRequest(f"this model cannot take {kind} content", param=param)
    return "".join(texts)


def template_message(message: ChatMessage, pictures: Pictures) -> Message:
    """As chat templates take it; its pictures are noted."""
    role = str(message.__struct_config__.tag)
    result: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": content_text(message.content, pictures),
    }
    if message.name is not None:
        result["name"] = message.name
    if isinstance(message, ToolMessage):
        result["tool_call_id"] = message.tool_call_id or ""
    calls = getattr(message, "tool_calls", None)
    if calls:
        result["tool_calls"] = [template_call(call.id, call.function.name, call.function.arguments) for call in calls]
    return result


def template_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """An earlier call as chat templates take it: arguments as an object."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"the arguments of call {call_id!r} are not valid JSON", param="messages") from None
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}
