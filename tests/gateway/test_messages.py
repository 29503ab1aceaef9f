"""Anthropic's API through the official client."""

import json
from typing import Any

import anthropic
import pytest

ASK = [{"role": "user", "content": "Name three fruits."}]
GREEDY = {"temperature": 0}
"""The client has no argument for it."""
TOOL = {
    "name": "weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_a_reply_is_the_same_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    ask = {"model": "smollm2", "messages": ASK, "max_tokens": 30, "extra_body": GREEDY, "system": "Be brief."}
    whole = claude.messages.create(**ask)
    with claude.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].text
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    total = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    counted = claude.messages.count_tokens(model="smollm2", messages=ASK, system="Be brief.")
    assert counted.input_tokens == total == final.usage.input_tokens + final.usage.cache_read_input_tokens


def test_the_events_are_the_apis_own(claude: anthropic.Anthropic) -> None:
    events = claude.messages.create(model="smollm2", messages=ASK, max_tokens=8, extra_body=GREEDY, stream=True)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    ask = {"model": "smollm2", "messages": ASK, "max_tokens": 30, "extra_body": GREEDY}
    text = claude.messages.create(**ask).content[0].text
    reply = claude.messages.create(**ask, stop_sequences=[text[6:10]])
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", text[6:10])
    assert reply.content[0].text == text[:6]
    assert claude.messages.create(**{**ask, "max_tokens": 2}).stop_reason == "max_tokens"


def test_a_started_reply_is_continued(claude: anthropic.Anthropic) -> None:
    started = [*ASK, {"role": "assistant", "content": "1. Apple\n2."}]
    reply = claude.messages.create(model="smollm2", messages=started, max_tokens=6, extra_body=GREEDY)
    assert reply.content[0].text
    with_answer = claude.messages.count_tokens(model="smollm2", messages=started).input_tokens
    without = claude.messages.count_tokens(model="smollm2", messages=ASK).input_tokens
    assert without < with_answer < without + 10


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_forced_tool_use_and_its_result(claude: anthropic.Anthropic, choice: dict[str, object]) -> None:
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = {**choice, "disable_parallel_tool_use": True}
    asked = {"model": "smollm2", "tools": [TOOL], "max_tokens": 80, "extra_body": GREEDY}
    whole = claude.messages.create(**asked, messages=ask, tool_choice=choice)
    [use] = whole.content
    assert (whole.stop_reason, use.type, use.name, list(use.input)) == ("tool_use", "tool_use", "weather", ["city"])
    with claude.messages.stream(**asked, messages=ask, tool_choice=choice) as stream:
        [streamed] = stream.get_final_message().content
    assert streamed.input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    answer = claude.messages.create(
        **asked,
        messages=[
            *ask,
            {"role": "assistant", "content": whole.model_dump()["content"]},
            {"role": "user", "content": [result]},
        ],
    )
    assert answer.usage.output_tokens > 0


def test_more_tokens_than_the_context_has_left_is_no_error(claude: anthropic.Anthropic) -> None:
    assert claude.messages.create(
        model="smollm2", messages=ASK, max_tokens=32_000, stop_sequences=["e"], extra_body=GREEDY
    ).stop_reason in ("stop_sequence", "end_turn")


def test_errors_have_the_apis_shape(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="nothing", messages=ASK, max_tokens=5)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError) as image:
        source = {"type": "base64", "media_type": "image/png", "data": "aaaa"}
        content = [{"type": "image", "source": source}]
        claude.messages.create(model="smollm2", messages=[{"role": "user", "content": content}], max_tokens=5)
    assert image.value.body["error"]["type"] == "invalid_request_error"
    assert "image" in image.value.body["error"]["message"]
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.create(model="smollm2", messages=ASK * 2000, max_tokens=5)


def test_an_output_schema_is_kept_to(claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    reply = claude.messages.create(
        model="smollm2",
        messages=ASK,
        max_tokens=30,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert json.loads(reply.content[0].text)["n"] in (1, 2)


def test_a_conversation_that_another_model_began_goes_on(claude: anthropic.Anthropic) -> None:
    def tokens(*content: dict[str, Any], role: str = "user") -> int:
        turns = [{"role": role, "content": list(content)}, {"role": "user", "content": "Go on."}]
        return claude.messages.count_tokens(model="smollm2", messages=turns).input_tokens

    text = {"type": "text", "text": "bread"}
    document = {"type": "document", "title": "A"}
    for same in (
        {**document, "source": {"type": "text", "media_type": "text/plain", "data": "bread"}},
        {**document, "source": {"type": "content", "content": "bread"}},
        {**document, "source": {"type": "content", "content": [text]}},
        {"type": "search_result", "source": "u", "title": "t", "content": [text]},
    ):
        assert tokens(same) == tokens(text)
    hosted = [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "bread"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
    ]
    assert tokens(*hosted, text, role="assistant") == tokens(text, role="assistant")
    found = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "bread"}]}
    assert tokens(found) == tokens({**found, "content": "bread"})
    with pytest.raises(anthropic.BadRequestError, match="as text"):
        tokens({**document, "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}})


def test_agents_bring_many_tools(claude: anthropic.Anthropic) -> None:
    tools = [{"name": f"tool_{number}", "input_schema": {"type": "object"}} for number in range(140)]
    ask = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}]}
    assert claude.messages.count_tokens(**ask, tools=tools).input_tokens > 140
