import json

import anthropic
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.gateway.grammar import check_grammar
from tokenworks.gateway.tools import (
    FORMATS,
    GEMMA,
    HERMES,
    LLAMA,
    Tool,
    ToolCall,
    ToolFormat,
    ToolParser,
    forced_grammar,
    format_of,
)
from tokenworks.protocol.messages import Finish

WEATHER = Tool("weather", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CLOCK = Tool("clock", "", {"type": "object", "properties": {}})

Parts = list[str | tuple[str, object]]

CASES: list[tuple[ToolFormat, str, Parts]] = [
    (HERMES, 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Lyon"}}\n</tool_call>',
     ["Let me see.\n", ("weather", {"city": "Lyon"})]),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n'
     '<tool_call>{"name": "weather", "arguments": {"city": "a</b>"}}</tool_call>',
     [("clock", {}), ("weather", {"city": "a</b>"})]),
    (HERMES, '<tool_call>[{"name": "clock", "arguments": {}}, '
     '{"name": "weather", "arguments": {"city": "x"}}]</tool_call>',
     [("clock", {}), ("weather", {"city": "x"})]),
    (HERMES, '<tool_call>\n{"name": "clock", "arguments": {}}', [("clock", {})]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "\\"a}}</tool_call> b"}}</tool_call>',
     [("weather", {"city": '"a}}</tool_call> b'})]),
    (HERMES, "<tool_call>not json</tool_call> after", ["<tool_call>not json</tool_call> after"]),
    (HERMES, "a < b and <tool", ["a < b and <tool"]),
    (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
     ['<tool_call>{"name": "rm", "arguments": {}}</tool_call>']),
    (LLAMA, '{"name": "weather", "parameters": {"city": "Lyon"}}', [("weather", {"city": "Lyon"})]),
    (LLAMA, '<|python_tag|>{"name": "clock", "parameters": {}}; {"name": "clock", "parameters": {}}',
     [("clock", {}), ("clock", {})]),
    (LLAMA, '{"answer": 42}', ['{"answer": 42}']),
    (LLAMA, 'It is {"name": "clock", "parameters": {}}', ['It is {"name": "clock", "parameters": {}}']),
    (GEMMA, '```tool_code\nweather(city="Lyon")\n```', [("weather", {"city": "Lyon"})]),
    (GEMMA, '[weather(city="Lyon"), clock()]', [("weather", {"city": "Lyon"}), ("clock", {})]),
    (GEMMA, '```json\n{"name": "weather", "parameters": {"city": "Lyon"}}\n```', [("weather", {"city": "Lyon"})]),
    (GEMMA, "```tool_code\nprint(weather(city='Lyon'))\n```", [("weather", {"city": "Lyon"})]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": NaN}}</tool_call>',
     ['<tool_call>{"name": "weather", "arguments": {"city": NaN}}</tool_call>']),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"city": "a\\ud800b"}}</tool_call>',
     [("weather", {"city": "a?b"})]),
    (GEMMA, "[weather(city=1e999)]", ["[weather(city=1e999)]"]),
    (GEMMA, '[weather(city="\\udc00")]', [("weather", {"city": "?"})]),
    (GEMMA, "[weather(city=open('/etc/passwd'))]", ["[weather(city=open('/etc/passwd'))]"]),
]  # fmt: skip


def read(tool_format: ToolFormat, pieces: list[str]) -> Parts:
    parser = ToolParser(tool_format, [WEATHER, CLOCK])
    parts: Parts = []
    for number, piece in enumerate(pieces, 1):
        for part in parser.push(piece, Finish.STOP if number == len(pieces) else None):
            if isinstance(part, ToolCall):
                parts.append((part.name, json.loads(part.arguments)))
            elif parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
    return parts


@pytest.mark.parametrize(("tool_format", "text", "expected"), CASES)
def test_calls_and_text_are_told_apart_whole_and_letter_by_letter(
    tool_format: ToolFormat, text: str, expected: Parts
) -> None:
    assert read(tool_format, [text]) == expected
    assert read(tool_format, [*text, ""]) == expected


@given(st.sampled_from(FORMATS), st.text('<tool_ca/>{}[]"a \n`;', max_size=40), st.integers(1, 5))
def test_text_without_calls_comes_through_unchanged_however_it_is_cut(
    tool_format: ToolFormat, text: str, size: int
) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)] + [""]
    assert "".join(str(part) for part in read(tool_format, pieces)) == text


@pytest.mark.parametrize(
    ("tool_format", "text", "arguments"),
    [
        (HERMES, '<tool_call>\n{"name": "weather"', ""),
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Ly', '{"city": "Ly'),
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Lyon"}', '{"city": "Lyon"}'),
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Lyon"}}\n</tool', '{"city": "Lyon"}'),
        (LLAMA, '{"name": "weather", "parameters": {"city": "L', '{"city": "L'),
        (GEMMA, '{"name": "weather", "parameters": {', "{"),
    ],
)
def test_a_call_that_the_token_limit_cuts_off_is_a_call_as_far_as_it_goes(
    tool_format: ToolFormat, text: str, arguments: str
) -> None:
    [call] = ToolParser(tool_format, [WEATHER]).push(text, Finish.LENGTH)
    assert isinstance(call, ToolCall)
    assert (call.name, call.arguments, call.cut) == ("weather", arguments, not arguments.endswith("}"))
    assert ToolParser(tool_format, [WEATHER]).push(text, Finish.STOP) == [text]
    assert ToolParser(tool_format, [CLOCK]).push(text, Finish.LENGTH) == [text]


@pytest.mark.parametrize("text", ["<", "<tool_call>", '<tool_call>\n{"name": "wea'])
def test_where_calls_are_forced_half_a_mark_is_never_shown_as_text(text: str) -> None:
    assert ToolParser(HERMES, [WEATHER], forced=True).push(text, Finish.LENGTH) == []
    assert ToolParser(HERMES, [WEATHER]).push(text, Finish.LENGTH) == [text]


def test_text_is_shown_as_soon_as_it_cannot_be_a_call() -> None:
    parser = ToolParser(HERMES, [WEATHER])
    assert parser.push("Hello <tool") == ["Hello "]
    assert parser.push("s and ") == ["<tools and "]


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda tool_format: tool_format.name)
def test_what_the_forced_grammar_allows_is_what_the_parser_reads(tool_format: ToolFormat) -> None:
    shared = {"type": "object", "properties": {"at": {"$ref": "#/$defs/place"}}, "$defs": {"place": {"type": "string"}}}
    tools = [WEATHER, Tool("go", "", shared)]
    for parallel in (False, True):
        assert check_grammar(forced_grammar(tool_format, tools, parallel=parallel), "tools").syntax == "lark"


def test_the_format_is_read_off_the_template() -> None:
    assert format_of("{{ '<|start_header_id|>' }}") is LLAMA
    assert format_of("<start_of_turn>user") is GEMMA
    assert format_of("<|im_start|>{% if tools %}<tool_call>") is HERMES
    assert format_of("<|im_start|>") is HERMES


def test_only_the_allowed_tools_are_called(client: openai.OpenAI) -> None:
    ask = [{"role": "user", "content": "Tell me the time in Lyon."}]
    names, schema = ("weather", "time", "news"), {"type": "object", "properties": {}, "additionalProperties": False}
    functions = [{"name": name, "parameters": schema} for name in names]
    chat = client.chat.completions.create(
        model="smollm2",
        messages=ask,
        max_tokens=40,
        temperature=0,
        tools=[{"type": "function", "function": function} for function in functions],
        tool_choice={
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "news"}}]},
        },
    ).choices[0]
    assert {call.function.name for call in chat.message.tool_calls} == {"news"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    response = client.responses.create(
        model="smollm2",
        input=ask,
        max_output_tokens=40,
        temperature=0,
        tools=[{"type": "function", "strict": False, **function} for function in functions],
        tool_choice=allowed,
    )
    assert {item.name for item in response.output} == {"weather"}
    assert response.tool_choice.to_dict() == allowed
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(
            model="smollm2", input=ask, tool_choice={**allowed, "tools": [{"type": "function", "name": "fly"}]}
        )
    assert (refused.value.param, "'fly'" in refused.value.message) == ("tool_choice", True)


def test_no_api_shows_half_a_forced_call_as_text(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    ask, schema = [{"role": "user", "content": "The weather in Lyon?"}], WEATHER.parameters
    for limit in (1, 4, 8, 16, 18):
        chat = client.chat.completions.create(
            model="smollm2",
            messages=ask,
            max_tokens=limit,
            temperature=0,
            tools=[{"type": "function", "function": {"name": "weather", "parameters": schema}}],
            tool_choice="required",
        ).choices[0]
        assert (chat.finish_reason, chat.message.content or "") == ("length", "")
        response = client.responses.create(
            model="smollm2",
            input=ask,
            max_output_tokens=limit,
            temperature=0,
            tools=[{"type": "function", "name": "weather", "parameters": schema, "strict": True}],
            tool_choice="required",
        )
        assert (response.status, response.output_text) == ("incomplete", "")
        message = claude.messages.create(
            model="smollm2",
            messages=ask,
            max_tokens=limit,
            tools=[{"name": "weather", "input_schema": schema}],
            tool_choice={"type": "any"},
            extra_body={"temperature": 0},
        )
        assert message.stop_reason == "max_tokens"
        assert all(block.type == "tool_use" for block in message.content)
    assert chat.message.tool_calls[0].function.name == "weather"
    assert [item.type for item in response.output] == ["function_call"]
    assert message.content[0].name == "weather"
