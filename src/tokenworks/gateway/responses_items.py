"""Input items of /v1/responses: as chat templates take them, and as /v1/responses/{id}/input_items lists them."""

from collections.abc import Mapping, Sequence

import msgspec

from tokenworks.gateway.chat import template_call
from tokenworks.gateway.pictures import Pictures
from tokenworks.gateway.prompt import Message
from tokenworks.gateway.responses_types import (
    InputFile,
    InputImage,
    InputItem,
    InputText,
    ItemContent,
    ItemList,
    OutputTextIn,
    RefusalText,
)
from tokenworks.protocol.errors import InvalidRequest

_HOSTED = ("_call", "_call_output")
"""How items end that tell of OpenAI's hosted tools: another model of the conversation had them, this one has not."""
_LIMIT_MAX = 100


def page(items: Sequence[InputItem], response_id: str, query: Mapping[str, str]) -> ItemList:
    """The items, newest first unless `order=asc`; `limit` of them, from behind the one that `after` names.

    Raises InvalidRequest naming the parameter.
    """
    listed = [_whole(item, f"item_{response_id.removeprefix('resp_')}_{n}") for n, item in enumerate(items)]
    if query.get("order", "desc") not in ("asc", "desc"):
        raise InvalidRequest("order is asc or desc", param="order")
    if query.get("order") != "asc":
        listed.reverse()
    limit, after = query.get("limit", "20"), query.get("after")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= _LIMIT_MAX):
        raise InvalidRequest(f"limit is a number from 1 to {_LIMIT_MAX}", param="limit")
    if after is not None:
        places = [place for place, item in enumerate(listed) if item.id == after]
        if not places:
            raise InvalidRequest(f"there is no item {after[:100]!r}", param="after")
        listed = listed[places[0] + 1 :]
    data = listed[: int(limit)]
    ids = [item.id for item in data]
    return ItemList(
        data=data,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=len(data) < len(listed),
    )


def _whole(item: InputItem, default_id: str) -> InputItem:
    """With an id and a type, and a message's text as a part."""
    content = item.content
    if isinstance(content, str):
        content = [OutputTextIn(content) if item.role == "assistant" else InputText(content)]
    return msgspec.structs.replace(item, id=item.id or default_id, type=item.type or "message", content=content)


def template_messages(instructions: str | None, items: Sequence[InputItem], pictures: Pictures) -> list[Message]:
    """As chat templates take them, pictures noted; calls that follow one another belong to one turn."""
    result: list[Message] = []
    if instructions:
        result.append({"role": "system", "content": instructions})
    for item in items:
        match item.type:
            case "message" | None:
                if item.role is None or item.content is None:
                    raise InvalidRequest("a message needs role and content", param="input")
                role = "system" if item.role == "developer" else item.role
                result.append({"role": role, "content": _content_text(item.content, pictures)})
            case "function_call" | "custom_tool_call" as kind:
                arguments = item.arguments if kind == "function_call" else _as_arguments(item.input)
                if item.call_id is None or item.name is None or arguments is None:
                    needed = "arguments" if kind == "function_call" else "input"
                    raise InvalidRequest(f"a {kind} needs call_id, name and {needed}", param="input")
                call = template_call(item.call_id, item.name, arguments)
                if result and result[-1]["role"] == "assistant":
                    result[-1].setdefault("tool_calls", []).append(call)
                else:
                    result.append({"role": "assistant", "content": "", "tool_calls": [call]})
            case "function_call_output" | "custom_tool_call_output" as kind:
                if item.call_id is None or item.output is None:
                    raise InvalidRequest(f"a {kind} needs call_id and output", param="input")
                result.append(
                    {"role": "tool", "tool_call_id": item.call_id, "content": _content_text(item.output, pictures)}
                )
            case "reasoning":
                pass  # an earlier turn's thinking is no part of the next prompt
            case "item_reference":
                raise InvalidRequest("item_reference: send the item itself, or previous_response_id", param="input")
            case other if not other.endswith(_HOSTED):
                raise InvalidRequest(f"there are no input items of type {other[:100]!r}", param="input")
    return _system_first(result)


def _as_arguments(text: str | None) -> str | None:
    """A custom tool's free text as the arguments of a function."""
    return None if text is None else msgspec.json.encode({"input": text}).decode()


def _system_first(messages: list[Message]) -> list[Message]:
    """Templates take one system message, in front: instructions and developer messages are joined there."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(system)}, *others] if system else others


def _content_text(content: str | ItemContent, pictures: Pictures) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if isinstance(part, InputImage) and part.image_url is not None:
            texts.append(pictures.at(part.image_url))
            continue
        if isinstance(part, InputImage | InputFile):
            raise InvalidRequest("no files are kept here: send an image as input_image with image_url", param="input")
        texts.append(part.refusal if isinstance(part, RefusalText) else part.text)
    return "".join(texts)
