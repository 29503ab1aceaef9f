"""Tool calls in text: written by models in one of a few formats, parsed whole or as a stream, forced by a grammar.

The format is chosen by what the model's chat template itself contains, never by the model's name.
"""

import ast
import json
import re
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from tokenworks.gateway.schema import readable
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.messages import Finish
from tokenworks.protocol.sampling import Grammar


class Tool(NamedTuple):
    """A function the client offers."""

    name: str
    description: str
    parameters: dict[str, Any]
    """A JSON schema."""


class ToolCall(NamedTuple):
    """A call the model made."""

    name: str
    arguments: str
    """JSON, as the API wants it."""
    id: str
    cut: bool = False
    """The token limit came before the call's end: `arguments` is only the beginning of JSON, perhaps nothing."""


Parse = Callable[[str], list[tuple[str, str]] | None]
"""Names and arguments, these as JSON; None for what is no call."""


class Span(NamedTuple):
    """Where calls stand in a model's text."""

    opening: str
    closing: str | None
    """None: the rest of the text."""
    parse: Parse
    only_at_start: bool = False
    """Only as the first thing said: elsewhere the opening is too common to mean a call."""
    keep_opening: bool = False
    """The opening is part of what is parsed."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way of writing calls."""

    name: str
    marks: tuple[str, ...]
    """A chat template that contains one of these belongs to this format."""
    spans: tuple[Span, ...]
    wrap: tuple[str, str]
    """Text before and after the JSON of one forced call."""
    arguments_key: str
    """What the JSON of a call names its arguments."""


def _parse_json(text: str) -> list[tuple[str, str]] | None:
    """`{"name", "arguments" or "parameters"}`, a list of them, or several with `;` or a line break between."""
    decoder, calls, at, text = json.JSONDecoder(), [], 0, text.strip()
    try:
        while at < len(text):
            value, end = decoder.raw_decode(text, at)
            calls.extend(value if isinstance(value, list) else [value])
            at = end
            while at < len(text) and text[at] in "; \r\n\t":
                at += 1
    except (ValueError, RecursionError):
        return None
    result = []
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        try:
            result.append((call["name"], _as_json(arguments)))
        except ValueError:
            return None
    return result or None


def _as_json(arguments: dict[str, Any]) -> str:
    """What is no JSON, though Python reads it, is not passed on: NaN is a ValueError, half a surrogate pair a `?`."""
    return json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode(errors="replace").decode()


_BEGUN_CALL = re.compile(
    r'\s*\{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"(\s*,\s*"(arguments|parameters)"\s*:\s*(?P<arguments>.*))?', re.DOTALL
)


def _begun_call(text: str) -> ToolCall | None:
    """One call as JSON that the token limit cut off somewhere after the name: its arguments as far as they go."""
    match = _BEGUN_CALL.match(text)
    if match is None:
        return None
    arguments, cut = match["arguments"] or "", False
    try:
        _, end = json.JSONDecoder().raw_decode(arguments)
    except (ValueError, RecursionError):
        end, cut = len(arguments), True
    return ToolCall(match["name"], arguments[:end], new_call_id(), cut)


def _parse_python(text: str) -> list[tuple[str, str]] | None:
    """`f(a=1)`, `[f(a=1), g()]` or one call a line; values are literals. Also takes the JSON form."""
    if (as_json := _parse_json(text)) is not None:
        return as_json
    if len(text) > 65_536:  # ast's own bounds are those of the C stack
        return None
    try:
        body = ast.parse(text.strip()).body
        expressions = [statement.value for statement in body if isinstance(statement, ast.Expr)]
        if len(expressions) != len(body):
            return None
        if len(expressions) == 1 and isinstance(expressions[0], ast.List):
            expressions = expressions[0].elts
        result = []
        for call in expressions:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print" and call.args:
                call = call.args[0]  # Gemma likes to print what it calls
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
                return None
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords if k.arg}
            result.append((call.func.id, _as_json(arguments)))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return result or None


HERMES = ToolFormat(
    name="hermes",
    marks=("<tool_call>",),
    spans=(Span("<tool_call>", "</tool_call>", _parse_json),),
    wrap=("<tool_call>\n", "\n</tool_call>"),
    arguments_key="arguments",
)
LLAMA = ToolFormat(
    name="llama",
    marks=("<|python_tag|>", "<|start_header_id|>"),
    spans=(
        Span("<|python_tag|>", None, _parse_json),
        Span("{", None, _parse_json, only_at_start=True, keep_opening=True),
        Span("[", None, _parse_python, only_at_start=True, keep_opening=True),
    ),
    wrap=("", ""),
    arguments_key="parameters",
)
GEMMA = ToolFormat(
    name="gemma",
    marks=("<start_of_turn>",),
    spans=(
        Span("```tool_code", "```", _parse_python),
        Span("```json", "```", _parse_json, only_at_start=True),
        Span("{", None, _parse_json, only_at_start=True, keep_opening=True),
        Span("[", None, _parse_python, only_at_start=True, keep_opening=True),
    ),
    wrap=("", ""),
    arguments_key="parameters",
)
FORMATS = (HERMES, LLAMA, GEMMA)


def format_of(chat_template: str) -> ToolFormat:
    """The format whose mark the template contains; Hermes for one that knows no tools (SmolLM2, plain ChatML)."""
    for tool_format in FORMATS:
        if any(mark in chat_template for mark in tool_format.marks):
            return tool_format
    return HERMES


class ToolParser:
    """Splits a model's text, as it comes, into text to show and calls. What may yet be a call is held back.

    `forced`: the model could write nothing but calls (`forced_grammar`), so that no text is ever shown.
    """

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Tool], *, forced: bool = False) -> None:
        self._forced = forced
        self._spans = tool_format.spans
        self._names = {tool.name for tool in tools}
        self._held = ""
        self._inside: Span | None = None
        self._lead = ""
        """White space before what we are inside of: shown only if that proves to be no call."""
        self._at_start = True
        self._after_call = False

    def push(self, text: str, finish: Finish | None = None) -> list[str | ToolCall]:
        """Text and calls that `text` completes, in order; with the `finish`, everything that was held back."""
        self._held += text
        parts: list[str | ToolCall] = []
        while self._inside is not None or self._open(parts, last=finish is not None):
            if not self._close(parts, finish):
                break
        return [part for part in parts if isinstance(part, ToolCall)] if self._forced else parts

    def _open(self, parts: list[str | ToolCall], last: bool) -> bool:
        """Show the text before the next opening and step inside it; False when there is none yet."""
        if self._after_call:  # white space between calls, or after the last, says nothing
            self._held = self._held.lstrip()
        held = self._held
        first = len(held) - len(held.lstrip())
        opening_at, keep_from = len(held), len(held)
        for span in self._spans:
            if span.only_at_start:
                if not self._at_start:
                    continue
                at = first if held.startswith(span.opening, first) else -1
                partial = 0 if span.opening.startswith(held[first:]) else len(held)
            else:
                at = held.find(span.opening)
                partial = _partial_tail(held, span.opening)
            if 0 <= at < opening_at:
                self._inside, opening_at = span, at
            keep_from = min(keep_from, partial)
        shown_to = opening_at if self._inside is not None else len(held) if last else keep_from
        shown, self._held = held[:shown_to], held[shown_to:]
        if self._inside is not None and not shown.strip():
            self._lead = shown
        elif shown:
            parts.append(shown)
            self._at_start = self._at_start and not shown.strip()
            self._after_call = False
        return self._inside is not None

    def _close(self, parts: list[str | ToolCall], finish: Finish | None) -> bool:
        """Turn what is inside into calls, or into text when it is not one; False when its end has not come yet."""
        span = self._inside
        assert span is not None
        body_from = 0 if span.keep_opening else len(span.opening)
        end = -1 if span.closing is None else _closing_at(self._held, span.closing, body_from)
        if end < 0 and finish is None:
            return False
        whole_to = len(self._held) if end < 0 or span.closing is None else end + len(span.closing)
        whole, self._held = self._held[:whole_to], self._held[whole_to:]
        body = whole[body_from : end if end >= 0 else len(whole)]
        calls = span.parse(body)
        begun = _begun_call(body) if calls is None and end < 0 and finish is Finish.LENGTH else None
        self._after_call = calls is not None and all(name in self._names for name, _ in calls)
        if calls is not None and self._after_call:
            parts.extend(ToolCall(name, arguments, new_call_id()) for name, arguments in calls)
        elif begun is not None and begun.name in self._names:
            parts.append(begun)
        else:
            parts.append(self._lead + whole)
        self._inside, self._lead, self._at_start = None, "", False
        return bool(self._held)


def _closing_at(text: str, closing: str, start: int) -> int:
    """Where `closing` comes first outside of a quoted string: an argument may say it too. -1: nowhere yet."""
    end = text.find(closing, start)
    while end >= 0 and re.sub(r"\\.", "", text[start:end], flags=re.DOTALL).count('"') % 2:
        end = text.find(closing, end + 1)
    return end


def _partial_tail(text: str, opening: str) -> int:
    """Where a cut-off `opening` may begin at the end of `text`; its length when nowhere."""
    for start in range(max(0, len(text) - len(opening) + 1), len(text)):
        if opening.startswith(text[start:]):
            return start
    return len(text)


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def forced_grammar(tool_format: ToolFormat, tools: Sequence[Tool], *, parallel: bool) -> Grammar:
    """Text that is one call (or, in parallel, several) of these tools and nothing else."""
    rules = []
    for index, tool in enumerate(tools):
        schema = {
            "x-guidance": {"whitespace_flexible": False},
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                tool_format.arguments_key: readable(
                    tool.parameters, "tools", f"#/properties/{tool_format.arguments_key}"
                ),
            },
            "required": ["name", tool_format.arguments_key],
            "additionalProperties": False,
        }
        rules.append(f"call_{index}: %json {msgspec.json.encode(schema).decode()}")
    before, after = (f"{json.dumps(text)} " if text else "" for text in tool_format.wrap)
    any_call = " | ".join(f"call_{index}" for index in range(len(tools)))
    several = parallel and tool_format.wrap[1]
    start = 'start: call ("\\n" call)*' if several else "start: call"
    return Grammar("lark", "\n".join([start, f"call: {before}({any_call}) {after}", *rules]))


def named_tools(tools: Sequence[Tool], names: Collection[str]) -> list[Tool]:
    """Those of `tools` that tool_choice names. Raises InvalidRequest for a name that is not among them."""
    offered = {tool.name for tool in tools}
    for name in names:
        if name not in offered:
            raise InvalidRequest(f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
    return [tool for tool in tools if tool.name in names]
