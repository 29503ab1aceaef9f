"""vLLM's /tokenize and /detokenize."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from tokenworks.gateway.chat import template_message
from tokenworks.gateway.chat_types import ChatMessage, ChatTool
from tokenworks.gateway.http import json_response, read_body
from tokenworks.gateway.pictures import Pictures
from tokenworks.gateway.prompt import chat_prompt
from tokenworks.gateway.sampling import TokenId
from tokenworks.gateway.serving import Serving
from tokenworks.gateway.tools import Tool
from tokenworks.protocol.errors import InvalidRequest


class TokenizeBody(msgspec.Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    tools: list[ChatTool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Tokenized(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=2**20)]


class Detokenized(msgspec.Struct):
    prompt: str


async def tokenize(request: Request) -> Response:
    """POST /tokenize."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, TokenizeBody)
    model = await serving.any_text_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give prompt or messages, one of them", param="prompt")
    if body.messages is not None:
        tools = [
            Tool(tool.function.name, tool.function.description or "", tool.function.parameters or {})
            for tool in body.tools or ()
        ]
        pictures = Pictures()
        messages = [template_message(message, pictures) for message in body.messages]
        token_ids = list((await chat_prompt(model, messages, pictures, tools, body.chat_template_kwargs)).ids)
    else:
        assert body.prompt is not None
        special = body.add_special_tokens is not False
        token_ids = await model.encode(body.prompt, special=special, param="prompt")
    names = None
    if body.return_token_strs:
        names = [model.tokenizer.tokenizer.id_to_token(token_id) or "" for token_id in token_ids]
    return json_response(Tokenized(len(token_ids), model.context_tokens, token_ids, names))


async def detokenize(request: Request) -> Response:
    """POST /detokenize."""
    serving: Serving = request.app.state.gateway
    body = await read_body(request, DetokenizeBody)
    model = await serving.any_text_model(body.model)
    model.check_ids(body.tokens, "tokens")
    return json_response(Detokenized(await model.decode(body.tokens)))
