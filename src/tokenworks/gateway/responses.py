"""OpenAI's /v1/responses: one stream of events, of which the whole reply is the last event's response."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HTTPResponse
from starlette.types import ASGIApp

from tokenworks.gateway.chat import choose_tools
from tokenworks.gateway.generation import Delta, Ticket, generate
from tokenworks.gateway.grammar import json_schema_grammar
from tokenworks.gateway.http import json_response, read_body
from tokenworks.gateway.logprobs import chat_logprobs
from tokenworks.gateway.pictures import Pictures
from tokenworks.gateway.prompt import Prompt, chat_prompt
from tokenworks.gateway.responses_items import page, template_messages
from tokenworks.gateway.responses_store import StoredResponse
from tokenworks.gateway.responses_types import (
    AllowedToolsChoice,
    DeletedResponse,
    IncompleteDetails,
    InputDetails,
    InputItem,
    InputTokens,
    NamedChoice,
    OutputCall,
    OutputDetails,
    OutputMessage,
    OutputText,
    Response,
    ResponseFault,
    ResponsesBody,
    ResponseUsage,
    TextOptions,
)
from tokenworks.gateway.sampling import draw_seed
from tokenworks.gateway.serving import Serving, TextModel
from tokenworks.gateway.stream import EventStream, named_event, until_disconnect
from tokenworks.gateway.tools import Tool, ToolCall, ToolParser, named_tools
from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import InvalidRequest, TokenworksError, UserError
from tokenworks.protocol.messages import Finish, Generate
from tokenworks.protocol.sampling import Grammar, Sampling

_LOGPROBS = "message.output_text.logprobs"
"""What `include` calls them."""


class ResponseNotFound(UserError):
    """No stored response of this name (never stored, deleted, or pushed out by newer ones)."""

    status, code = 404, "response_not_found"


async def create_response(request: Request) -> ASGIApp:
    """POST /v1/responses."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, ResponsesBody)
    if body.background:
        raise InvalidRequest("background responses are not offered here", param="background")
    if body.conversation is not None:
        raise InvalidRequest("conversations are not kept here; use previous_response_id", param="conversation")
    model = await serving.generator(body.model)
    items = await _conversation(serving, body)
    run = await _Run.prepare(model, body, items)
    if body.stream:
        return EventStream(_encoded(run.events(serving)), run.failed_event)
    return json_response(await until_disconnect(request, _last(serving, run)))


async def _encoded(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for event in events:
            yield named_event(event["type"], event)


async def _last(serving: Serving, run: "_Run") -> Response:
    async with aclosing(run.events(serving)) as events:
        async for _ in events:
            pass
    return run.response


async def get_response(request: Request) -> HTTPResponse:
    """GET /v1/responses/{id}."""
    serving: Serving = request.app.state.gateway
    stored = await _stored(serving, request.path_params["id"], None)
    return HTTPResponse(stored.response, media_type="application/json")


async def list_input_items(request: Request) -> HTTPResponse:
    """GET /v1/responses/{id}/input_items: what the response was made of, the conversation before it included."""
    serving: Serving = request.app.state.gateway
    response_id = request.path_params["id"]
    stored = await _stored(serving, response_id, None)
    made = len(msgspec.json.decode(stored.response, type=Response).output)
    items = msgspec.json.decode(stored.conversation, type=list[InputItem])
    return json_response(page(items[: len(items) - made], response_id, request.query_params))


async def count_input_tokens(request: Request) -> HTTPResponse:
    """POST /v1/responses/input_tokens."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, ResponsesBody)
    model = await serving.generator(body.model)
    prompt, *_ = await _prompt(model, body, await _conversation(serving, body))
    return json_response(InputTokens(len(prompt.ids)))


async def delete_response(request: Request) -> HTTPResponse:
    """DELETE /v1/responses/{id}."""
    serving: Serving = request.app.state.gateway
    response_id = request.path_params["id"]
    if not await asyncio.to_thread(serving.store.delete, response_id):
        raise ResponseNotFound(f"there is no stored response {response_id[:100]!r}")
    return json_response(DeletedResponse(response_id))


async def _stored(serving: Serving, response_id: str, param: str | None) -> StoredResponse:
    stored = await asyncio.to_thread(serving.store.get, response_id)
    if stored is None:
        raise ResponseNotFound(f"there is no stored response {response_id[:100]!r}", param=param)
    return stored


async def _conversation(serving: Serving, body: ResponsesBody) -> list[InputItem]:
    items: list[InputItem] = []
    if body.previous_response_id is not None:
        stored = await _stored(serving, body.previous_response_id, "previous_response_id")
        items = msgspec.json.decode(stored.conversation, type=list[InputItem])
    if isinstance(body.input, str):
        return [*items, InputItem(type="message", role="user", content=body.input)]
    return [*items, *body.input]


async def _prompt(
    model: TextModel, body: ResponsesBody, items: list[InputItem]
) -> tuple[Prompt, list[Tool], Grammar | None]:
    """The prompt, the tools it shows, and the grammar where one of them must be called."""
    tools, forced = _tools(model, body)
    pictures = Pictures()
    messages = template_messages(body.instructions, items, pictures)
    return await chat_prompt(model, messages, pictures, tools, param="input"), tools, forced


class _Run:
    """One response as it comes to be."""

    def __init__(
        self, body: ResponsesBody, items: list[InputItem], model: TextModel, ticket: Ticket, parser: ToolParser | None
    ) -> None:
        self._body, self._items, self._model, self._ticket = body, items, model, ticket
        self._parser = parser
        self._sequence_number = 0
        self._message: OutputMessage | None = None
        self._texts: list[str] = []
        sampling = ticket.sequences[0].sampling
        self.response = Response(
            id=ticket.sequences[0].request_id,
            created_at=int(wall_time_s()),
            status="in_progress",
            model=body.model,
            instructions=body.instructions,
            previous_response_id=body.previous_response_id,
            max_output_tokens=body.max_output_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            text=body.text or TextOptions(),
            tools=body.tools or [],
            tool_choice=body.tool_choice or "auto",
            parallel_tool_calls=body.parallel_tool_calls is not False,
            store=body.store is not False,
            metadata=body.metadata or {},
        )

    @staticmethod
    async def prepare(model: TextModel, body: ResponsesBody, items: list[InputItem]) -> "_Run":
        prompt, tools, forced = await _prompt(model, body, items)
        wants_logprobs = _LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
        sampling = Sampling(
            max_tokens=model.room(len(prompt.ids), body.max_output_tokens, "input"),
            seed=draw_seed(),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
            grammar=forced or _format_grammar(body),
        )
        sequence = Generate(
            request_id=f"resp_{uuid.uuid4().hex}", prompt_ids=prompt.ids, sampling=sampling, pictures=prompt.pictures
        )
        ticket = Ticket(model=model.name, vocabulary=model.vocabulary, sequences=(sequence,))
        parser = ToolParser(model.tool_format, tools, forced=forced is not None) if tools else None
        return _Run(body, items, model, ticket, parser)

    async def events(self, serving: Serving) -> AsyncGenerator[dict[str, Any], None]:
        """Every event in order; `response` is complete (and stored) with the last."""
        with serving.admitted(1):
            yield self._event("response.created", response=self.response)
            yield self._event("response.in_progress", response=self.response)
            async with aclosing(generate(serving.pool, serving.metrics, self._ticket)) as deltas:
                async for delta in deltas:
                    for event in self._take(delta):
                        yield event
        response, usage = self.response, self._ticket.usage
        response.usage = ResponseUsage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.prompt_tokens + usage.completion_tokens,
            InputDetails(usage.cached_tokens),
            OutputDetails(),
        )
        if response.store:
            encoded = msgspec.json.encode(response)
            conversation = msgspec.json.encode([*self._items, *_as_input(response)])
            await asyncio.to_thread(serving.store.put, response.id, StoredResponse(encoded, conversation))
        yield self._event(f"response.{response.status}", response=response)

    def failed_event(self, error: TokenworksError) -> bytes:
        """The last event of a stream that cannot go on."""
        self.response.status = "failed"
        self.response.error = ResponseFault("server_error", error.message)
        return named_event("response.failed", self._event("response.failed", response=self.response))

    def _event(self, kind: str, **fields: object) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return event

    def _take(self, delta: Delta) -> list[dict[str, Any]]:
        last = delta.finish is not None
        parts: list[str | ToolCall] = [delta.text] if delta.text else []
        if self._parser is not None:
            parts = self._parser.push(delta.text, delta.finish)
        logprobs: list[Any] = []
        if delta.logprobs:
            logprobs = chat_logprobs(delta.logprobs, self._model.vocabulary, False).content
        events = []
        for part in parts:
            if isinstance(part, ToolCall):
                events += self._close_message("completed") + self._call(part)
            else:
                events += self._text(part, logprobs)
                logprobs = []
        if last:
            cut = delta.finish is Finish.LENGTH
            self.response.status = "incomplete" if cut else "completed"
            if cut:
                self.response.incomplete_details = IncompleteDetails("max_output_tokens")
            if not self.response.output:
                events += self._text("", logprobs)
            events += self._close_message("incomplete" if cut else "completed")
        return events

    def _text(self, text: str, logprobs: list[Any]) -> list[dict[str, Any]]:
        events = []
        if self._message is None:
            self._message = OutputMessage(id=f"msg_{uuid.uuid4().hex}", status="in_progress", content=[])
            index = len(self.response.output)
            events.append(self._event("response.output_item.added", output_index=index, item=self._message_copy()))
            self.response.output.append(self._message)
            self._message.content.append(OutputText("", [], []))
            events.append(self._event("response.content_part.added", **self._place(), part=OutputText("")))
            self._texts = []
        if text:
            self._texts.append(text)
            self._message.content[0].logprobs.extend(logprobs)
            events.append(self._event("response.output_text.delta", **self._place(), delta=text, logprobs=logprobs))
        return events

    def _message_copy(self) -> OutputMessage:
        assert self._message is not None
        return msgspec.structs.replace(self._message, content=list(self._message.content))

    def _place(self) -> dict[str, Any]:
        assert self._message is not None
        return {"item_id": self._message.id, "output_index": len(self.response.output) - 1, "content_index": 0}

    def _close_message(self, status: Any) -> list[dict[str, Any]]:
        if self._message is None:
            return []
        part = self._message.content[0]
        part.text = "".join(self._texts)
        self._message.status = status
        place = self._place()
        events = [
            self._event("response.output_text.done", **place, text=part.text, logprobs=part.logprobs),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=place["output_index"], item=self._message),
        ]
        self._message = None
        return events

    def _call(self, call: ToolCall) -> list[dict[str, Any]]:
        item = OutputCall(
            id=f"fc_{uuid.uuid4().hex}",
            call_id=call.id,
            name=call.name,
            arguments=call.arguments,
            status="incomplete" if call.cut else "completed",
        )
        index = len(self.response.output)
        self.response.output.append(item)
        begun = msgspec.structs.replace(item, arguments="", status="in_progress")
        place = {"item_id": item.id, "output_index": index}
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=call.arguments),
            self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=index, item=item),
        ]


def _as_input(response: Response) -> list[InputItem]:
    result = []
    for item in response.output:
        if isinstance(item, OutputCall):
            call = InputItem(type="function_call", call_id=item.call_id, name=item.name, arguments=item.arguments)
            result.append(call)
        else:
            text = "".join(part.text for part in item.content)
            result.append(InputItem(type="message", role="assistant", content=text))
    return result


def _tools(model: TextModel, body: ResponsesBody) -> tuple[list[Tool], Grammar | None]:
    offered = []
    for tool in body.tools or ():
        if tool.type != "function":
            continue  # coding agents always list OpenAI's hosted tools; this model simply does not have them
        if not tool.name:
            raise InvalidRequest("a function tool needs a name", param="tools")
        offered.append(Tool(tool.name, tool.description or "", tool.parameters or {"type": "object"}))
    choice = body.tool_choice
    if isinstance(choice, NamedChoice):
        return choose_tools(model, named_tools(offered, [choice.name]), "required", parallel=False)
    if isinstance(choice, AllowedToolsChoice):
        names = [each.name for each in choice.tools if each.type == "function" and each.name]
        return choose_tools(model, named_tools(offered, names), choice.mode, body.parallel_tool_calls)
    return choose_tools(model, offered, choice or "auto", body.parallel_tool_calls)


def _format_grammar(body: ResponsesBody) -> Grammar | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return json_schema_grammar({"type": "object"}, "text.format")
    if wanted.schema is None:
        raise InvalidRequest("a json_schema format needs a schema", param="text.format.schema")
    return json_schema_grammar(wanted.schema, "text.format.schema")
