"""Messages to prompt token ids: the model's own chat template, with the tools it is offered."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenworks.gateway.pictures import Pictures, Sight
from tokenworks.gateway.serving import TextModel
from tokenworks.gateway.tools import Tool
from tokenworks.protocol.errors import ContextTooLong, InvalidRequest
from tokenworks.protocol.messages import Picture

Message = dict[str, Any]
"""As chat templates take it: role, content (text), tool_calls with arguments as an object, name."""

_THREAD_FROM_MESSAGES = 64
"""Longer conversations are rendered off the event loop, so that streams go on."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a worker is given to go on from."""

    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()


async def chat_prompt(
    model: TextModel,
    messages: Sequence[Message],
    pictures: Pictures,
    tools: Sequence[Tool] = (),
    template_values: dict[str, Any] | None = None,
    *,
    param: str = "messages",
) -> Prompt:
    """The prompt up to where the assistant goes on. A last message of the assistant's is continued, not answered.

    `pictures`: those that the messages show. Raises InvalidRequest for what the template refuses, ContextTooLong,
    naming `param`, for what cannot fit.
    """
    if pictures.sources and model.sight is None:
        raise InvalidRequest(f"the model {model.name!r} reads text only; it cannot take images", param=param)
    if len(messages) > model.context_tokens:  # each is a token at the very least
        raise ContextTooLong(len(messages), None, model.context_tokens, param=param)
    if len(messages) > _THREAD_FROM_MESSAGES:
        text = await asyncio.to_thread(_chat_text, model, messages, pictures, tools, template_values)
    else:
        text = _chat_text(model, messages, pictures, tools, template_values)
    if model.sight is None or not pictures.sources:
        return Prompt(tuple(await model.encode(text, special=False, param=param)))
    shown = await model.sight.look(pictures.sources, model.context_tokens, param)
    text, of_pictures = model.sight.written(text, shown)
    ids = await model.encode(text, special=False, param=param)
    return Prompt(tuple(ids), model.sight.place(ids, of_pictures, shown))


def _chat_text(
    model: TextModel,
    messages: Sequence[Message],
    pictures: Pictures,
    tools: Sequence[Tool],
    template_values: dict[str, Any] | None,
) -> str:
    """The rendered template."""
    from tokenworks.models.text.chat_template import render

    values = {
        **(template_values or {}),
        "bos_token": model.tokenizer.bos_token,
        "eos_token": model.tokenizer.eos_token,
    }
    if taken := values.keys() & {"messages", "tools", "add_generation_prompt"}:
        raise InvalidRequest(f"{taken.pop()!r} is not for the client to set", param="chat_template_kwargs")
    template = model.tokenizer.chat_template
    if template is None:
        raise InvalidRequest(f"the model {model.name!r} has no chat template; use /v1/completions", param="messages")
    messages = list(messages)
    prefill = ""
    if messages and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"]
    if "tools" not in template:
        messages = _without_tools(model, messages, tools)
        tools = ()
    if model.sight is not None:
        messages = [_in_parts(model.sight, message, bool(pictures.sources)) for message in messages]
    return (
        render(
            template,
            messages,
            tools=[_as_function(tool) for tool in tools] or None,
            **values,
        )
        + prefill
    )


def _in_parts(sight: Sight, message: Message, guarded: bool) -> Message:
    """The templates of models that see take a message's content as a list."""
    content = sight.guarded(message["content"]) if guarded else message["content"]
    return {**message, "content": sight.parts(content)}


def _as_function(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _without_tools(model: TextModel, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """For templates that know no tools: the system message describes them, calls and results become plain turns."""
    before, after = model.tool_format.wrap
    key = model.tool_format.arguments_key
    result: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        calls = message.get("tool_calls") or ()
        if calls:
            written = (
                before + json.dumps({"name": call["function"]["name"], key: call["function"]["arguments"]}) + after
                for call in calls
            )
            content = "\n".join([*([content] if content else []), *written])
        elif role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if result and role == "user" == result[-1]["role"]:  # some templates insist on turns that alternate
            result[-1] = {"role": role, "content": result[-1]["content"] + "\n" + content}
        else:
            result.append({"role": role, "content": content})
    if tools:
        listed = "\n".join(json.dumps(_as_function(tool)) for tool in tools)
        example = before + json.dumps({"name": "<function name>", key: {"<parameter>": "<value>"}}) + after
        how = (
            "You can call these functions; each line describes one as JSON:\n"
            f"{listed}\n\nTo call a function, reply with nothing but:\n{example}"
        )
        if result and result[0]["role"] == "system":
            result[0] = {"role": "system", "content": result[0]["content"] + "\n\n" + how}
        else:
            result.insert(0, {"role": "system", "content": how})
    return result
