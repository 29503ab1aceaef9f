"""Bodies, replies and stream events of Anthropic's /v1/messages."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tokenworks.gateway.sampling import StopString, Tokens


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class Base64Source(msgspec.Struct, tag_field="type", tag="base64"):
    data: str
    media_type: str | None = None


class UrlSource(msgspec.Struct, tag_field="type", tag="url"):
    url: str
    """From hosts that the configuration allows."""


class FileSource(msgspec.Struct, tag_field="type", tag="file"):
    """Refused: no files are kept here."""


class ImageBlock(msgspec.Struct, tag_field="type", tag="image"):
    source: Base64Source | UrlSource | FileSource


class PlainSource(msgspec.Struct, tag_field="type", tag="text"):
    data: str


class ContentSource(msgspec.Struct, tag_field="type", tag="content"):
    content: str | list[TextBlock]


class DocumentBlock(msgspec.Struct, tag_field="type", tag="document"):
    """A text; refused as a file: the models served here read none."""

    source: PlainSource | ContentSource | Base64Source | UrlSource | FileSource
    title: str | None = None


class SearchResultBlock(msgspec.Struct, tag_field="type", tag="search_result"):
    """What a client's own search found."""

    content: list[TextBlock]
    source: str
    title: str


class ToolReferenceBlock(msgspec.Struct, tag_field="type", tag="tool_reference"):
    """A tool that a search among tools found."""

    tool_name: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """An earlier turn's thinking; left out of the prompt."""


class RedactedThinkingBlock(msgspec.Struct, tag_field="type", tag="redacted_thinking"):
    """As ThinkingBlock."""


class ServerToolUseBlock(msgspec.Struct, tag_field="type", tag="server_tool_use"):
    """Of Anthropic's hosted tools, which another model of the conversation had; left out of the prompt, as is what they
    found."""


class WebSearchBlock(msgspec.Struct, tag_field="type", tag="web_search_tool_result"):
    """As ServerToolUseBlock."""


class WebFetchBlock(msgspec.Struct, tag_field="type", tag="web_fetch_tool_result"):
    """As ServerToolUseBlock."""


class ToolResultBlock(msgspec.Struct, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock] | None = None
    is_error: bool | None = None


Block = (
    TextBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ServerToolUseBlock
    | WebSearchBlock
    | WebFetchBlock
)


class InputMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class InputTool(msgspec.Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class AutoChoice(msgspec.Struct, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(msgspec.Struct, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class ToolChoice(msgspec.Struct, tag_field="type", tag="tool"):
    name: str
    disable_parallel_tool_use: bool | None = None


class NoneChoice(msgspec.Struct, tag_field="type", tag="none"):
    pass


class SystemBlock(msgspec.Struct):
    text: str
    type: Literal["text"] = "text"


class OutputFormat(msgspec.Struct):
    schema: dict[str, Any]
    type: Literal["json_schema"] = "json_schema"


class OutputConfig(msgspec.Struct):
    format: OutputFormat | None = None


class CountTokensBody(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    system: str | list[SystemBlock] | None = None
    tools: Annotated[list[InputTool], Meta(max_length=1024)] | None = None
    tool_choice: AutoChoice | AnyChoice | ToolChoice | NoneChoice | None = None


class MessagesBody(CountTokensBody, kw_only=True):
    """POST /v1/messages. Fields not named here are accepted and ignored."""

    max_tokens: Tokens
    """At most; where less is left of the context, less is made."""
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=16)] | None = None
    output_config: OutputConfig | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class TokenCount(msgspec.Struct):
    input_tokens: int


class MessageUsage(msgspec.Struct):
    input_tokens: int
    """Without the cached ones."""
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessageReply(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
