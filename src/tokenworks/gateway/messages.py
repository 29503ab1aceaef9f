"""Anthropic's /v1/messages and /v1/messages/count_tokens, over the same core as OpenAI's paths."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from tokenworks.gateway.chat import choose_tools
from tokenworks.gateway.generation import Ticket, collect, generate
from tokenworks.gateway.grammar import json_schema_grammar
from tokenworks.gateway.http import anthropic_error, json_response, read_body
from tokenworks.gateway.messages_types import (
    AnyChoice,
    Base64Source,
    ContentSource,
    CountTokensBody,
    DocumentBlock,
    ImageBlock,
    InputMessage,
    MessageReply,
    MessagesBody,
    MessageUsage,
    NoneChoice,
    PlainSource,
    SearchResultBlock,
    StopReason,
    TextBlock,
    TokenCount,
    ToolChoice,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
)
from tokenworks.gateway.pictures import Pictures
from tokenworks.gateway.prompt import Message, chat_prompt
from tokenworks.gateway.sampling import draw_seed
from tokenworks.gateway.serving import Serving, TextModel
from tokenworks.gateway.stream import EventStream, named_event, until_disconnect
from tokenworks.gateway.tools import Tool, ToolCall, ToolParser, named_tools
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.messages import Finish, Generate
from tokenworks.protocol.sampling import Grammar, Sampling


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, CountTokensBody)
    model = await serving.generator(body.model)
    tools, _ = _tools(model, body)
    pictures = Pictures()
    prompt = await chat_prompt(model, _template_messages(body, pictures), pictures, tools)
    return json_response(TokenCount(len(prompt.ids)))


async def messages(request: Request) -> ASGIApp:
    """POST /v1/messages."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, MessagesBody)
    model = await serving.generator(body.model)
    tools, grammar = _tools(model, body)
    pictures = Pictures()
    prompt = await chat_prompt(model, _template_messages(body, pictures), pictures, tools)
    sampling = Sampling(
        # Clients of this API ask for more than small contexts hold; theirs is a ceiling, not a wish.
        max_tokens=min(body.max_tokens, model.room(len(prompt.ids), None, "messages")),
        seed=draw_seed(),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        grammar=grammar or _output_grammar(body),
    )
    message_id = f"msg_{uuid.uuid4().hex}"
    ticket = Ticket(
        model=model.name,
        vocabulary=model.vocabulary,
        sequences=(
            Generate(request_id=message_id, prompt_ids=prompt.ids, sampling=sampling, pictures=prompt.pictures),
        ),
        stops=tuple(body.stop_sequences or ()),
    )
    parser = ToolParser(model.tool_format, tools, forced=grammar is not None) if tools else None
    if body.stream:
        return EventStream(
            _events(serving, body, ticket, parser), lambda error: named_event("error", anthropic_error(error))
        )
    with serving.admitted(1):
        [whole] = await until_disconnect(request, collect(serving.pool, serving.metrics, ticket))
    parts = _parts(parser, whole.text, whole.finish)
    content: list[TextBlock | ToolUseBlock] = [
        TextBlock(part) if isinstance(part, str) else _tool_use(part) for part in parts
    ]
    called = any(isinstance(part, ToolCall) for part in parts)
    reason, sequence = _stop_reason(body, ticket, whole.finish, whole.stop, called)
    return json_response(
        MessageReply(
            id=message_id,
            model=body.model,
            content=content,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=_usage(ticket),
        )
    )


def _output_grammar(body: MessagesBody) -> Grammar | None:
    wanted = body.output_config.format if body.output_config else None
    return json_schema_grammar(wanted.schema, "output_config.format.schema") if wanted else None


async def _events(
    serving: Serving, body: MessagesBody, ticket: Ticket, parser: ToolParser | None
) -> AsyncGenerator[bytes, None]:
    block = -1
    in_text = called = started = False

    def stop_block() -> bytes:
        return named_event("content_block_stop", {"type": "content_block_stop", "index": block})

    def start_block(content: object) -> bytes:
        event = {"type": "content_block_start", "index": block, "content_block": content}
        return named_event("content_block_start", event)

    def block_delta(delta: object) -> bytes:
        return named_event("content_block_delta", {"type": "content_block_delta", "index": block, "delta": delta})

    with serving.admitted(1):
        async with aclosing(generate(serving.pool, serving.metrics, ticket)) as deltas:
            async for delta in deltas:
                if not started:
                    started = True
                    message = MessageReply(
                        id=ticket.sequences[0].request_id,
                        model=body.model,
                        content=[],
                        stop_reason=None,
                        stop_sequence=None,
                        usage=_usage(ticket),
                    )
                    yield named_event("message_start", {"type": "message_start", "message": message})
                for part in _parts(parser, delta.text, delta.finish):
                    if isinstance(part, str):
                        if not in_text:
                            in_text, block = True, block + 1
                            yield start_block(TextBlock(""))
                        yield block_delta({"type": "text_delta", "text": part})
                        continue
                    if in_text:
                        yield stop_block()
                    in_text, called, block = False, True, block + 1
                    yield start_block(ToolUseBlock(part.id, part.name, {}))
                    yield block_delta({"type": "input_json_delta", "partial_json": part.arguments})
                    yield stop_block()
                if delta.finish is not None:
                    reason, sequence = _stop_reason(body, ticket, delta.finish, delta.stop, called)
    if in_text:
        yield stop_block()
    usage = _usage(ticket)
    ending = {"stop_reason": reason, "stop_sequence": sequence}
    yield named_event("message_delta", {"type": "message_delta", "delta": ending, "usage": usage})
    yield named_event("message_stop", {"type": "message_stop"})


def _parts(parser: ToolParser | None, text: str, finish: Finish | None) -> list[str | ToolCall]:
    if parser is None:
        return [text] if text else []
    return parser.push(text, finish)


def _tool_use(call: ToolCall) -> ToolUseBlock:
    """A call that was cut off has no input: this API has no place for half of it."""
    return ToolUseBlock(call.id, call.name, {} if call.cut else msgspec.json.decode(call.arguments))


def _usage(ticket: Ticket) -> MessageUsage:
    usage = ticket.usage
    fresh = usage.prompt_tokens - usage.cached_tokens
    return MessageUsage(fresh, usage.completion_tokens, usage.cached_tokens)


def _stop_reason(
    body: MessagesBody, ticket: Ticket, finish: Finish, stop: str | int | None, called: bool
) -> tuple[StopReason, str | None]:
    if isinstance(stop, str):
        return "stop_sequence", stop
    if finish is Finish.LENGTH:
        full = ticket.sequences[0].sampling.max_tokens < body.max_tokens
        return ("model_context_window_exceeded" if full else "max_tokens"), None
    return ("tool_use" if called else "end_turn"), None


def _tools(model: TextModel, body: CountTokensBody) -> tuple[list[Tool], Grammar | None]:
    offered = []
    for tool in body.tools or ():
        if tool.type not in (None, "custom"):
            continue  # coding agents list Anthropic's hosted tools too; this model simply does not have them
        offered.append(Tool(tool.name, tool.description or "", tool.input_schema or {"type": "object"}))
    choice = body.tool_choice
    parallel = not getattr(choice, "disable_parallel_tool_use", None)
    if isinstance(choice, ToolChoice):
        return choose_tools(model, named_tools(offered, [choice.name]), "required", parallel=False)
    kind = "none" if isinstance(choice, NoneChoice) else "required" if isinstance(choice, AnyChoice) else "auto"
    return choose_tools(model, offered, kind, parallel)


def _template_messages(body: CountTokensBody, pictures: Pictures) -> list[Message]:
    """As chat templates take them: tool results become messages of their own."""
    result: list[Message] = []
    if body.system:
        system = body.system if isinstance(body.system, str) else "\n\n".join(block.text for block in body.system)
        result.append({"role": "system", "content": system})
    for message in body.messages:
        result.extend(_from_message(message, pictures))
    return result


def _from_message(message: InputMessage, pictures: Pictures) -> list[Message]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    result: list[Message] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        match block:
            case TextBlock() | DocumentBlock() | SearchResultBlock():
                texts.append(_text(block))
            case ImageBlock():
                texts.append(_picture(block, pictures))
            case ToolUseBlock():
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ToolResultBlock():
                result.append(
                    {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result_text(block, pictures)}
                )
            case _:  # thinking, and what hosted tools did
                pass
    if texts or calls or not result:
        turn: Message = {"role": message.role, "content": "".join(texts)}
        if calls:
            turn["tool_calls"] = calls
        result.append(turn)
    return result


def _result_text(block: ToolResultBlock, pictures: Pictures) -> str:
    if block.content is None or isinstance(block.content, str):
        text = block.content or ""
    else:
        text = "".join(
            _picture(part, pictures) if isinstance(part, ImageBlock) else _text(part) for part in block.content
        )
    return f"Error: {text}" if block.is_error else text


def _text(block: TextBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock) -> str:
    match block:
        case TextBlock(text=text) | DocumentBlock(source=PlainSource(data=text)):
            return text
        case DocumentBlock(source=ContentSource(content=str(text))):
            return text
        case DocumentBlock(source=ContentSource(content=list(parts))) | SearchResultBlock(content=list(parts)):
            return "".join(part.text for part in parts)
        case ToolReferenceBlock(tool_name=name):
            return name
    raise InvalidRequest("this model reads texts alone: send what is in the document as text", param="messages")


def _picture(block: ImageBlock, pictures: Pictures) -> str:
    match block.source:
        case Base64Source(data=data):
            return pictures.given(data)
        case UrlSource(url=url):
            return pictures.at(url)
        case _:
            raise InvalidRequest("no files are kept here: send the image in base64", param="messages")
