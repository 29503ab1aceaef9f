"""Bodies, replies and items of OpenAI's /v1/responses."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tokenworks.gateway.sampling import Tokens, TopLogprobs


class InputText(msgspec.Struct, tag_field="type", tag="input_text"):
    text: str


class OutputTextIn(msgspec.Struct, tag_field="type", tag="output_text"):
    """An earlier output, handed back as input."""

    text: str


class PlainText(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class RefusalText(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """An earlier turn's thinking; left out of the prompt."""

    text: str


class InputImage(msgspec.Struct, tag_field="type", tag="input_image", omit_defaults=True):
    image_url: str | None = None
    """data:image/...;base64,... or, from hosts that the configuration allows, http(s)."""
    file_id: str | None = None
    """Refused: no files are kept here."""
    detail: str | None = None


class InputFile(msgspec.Struct, tag_field="type", tag="input_file"):
    """Refused: the models served here read no files."""


ItemContent = list[InputText | OutputTextIn | PlainText | RefusalText | ReasoningText | InputImage | InputFile]


class InputItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message, a call, a call's output; `type` may be left out of a message, so this is one shape for all."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | ItemContent | None = None
    id: str | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    """Of a custom_tool_call: free text in place of arguments."""
    output: str | ItemContent | None = None


class ResponsesTool(msgspec.Struct, kw_only=True, omit_defaults=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(msgspec.Struct, tag_field="type", tag="function"):
    name: str


class AllowedTool(msgspec.Struct):
    type: str
    name: str | None = None
    """Of a function; hosted tools have none, and this model has none of them."""


class AllowedToolsChoice(msgspec.Struct, tag_field="type", tag="allowed_tools"):
    """Of the tools offered, only these."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=128)]


ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedToolsChoice


class TextFormat(msgspec.Struct, kw_only=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, omit_defaults=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesBody(msgspec.Struct, kw_only=True):
    """POST /v1/responses. Fields not named here are accepted and ignored."""

    model: str
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    conversation: Any = None
    """Refused: to leave it out silently would be to forget what the client believes is known."""
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[Any] = []


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class OutputCall(msgspec.Struct, tag_field="type", tag="function_call", kw_only=True):
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | OutputCall


class InputDetails(msgspec.Struct):
    cached_tokens: int


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class ResponseFault(msgspec.Struct):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"]


class Response(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputItem] = []
    error: ResponseFault | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float
    top_p: float
    text: TextOptions
    tools: list[ResponsesTool]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    truncation: Literal["disabled"] = "disabled"
    store: bool
    metadata: dict[str, str]
    user: str | UnsetType | None = UNSET
    usage: ResponseUsage | None = None


class ItemList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[InputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(msgspec.Struct):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class DeletedResponse(msgspec.Struct):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
