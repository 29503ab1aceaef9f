"""/v1/responses through the official client."""

import json

import openai
import pytest

TOOL = {
    "type": "function",
    "name": "add",
    "description": "Adds",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "strict": True,
}


def test_the_streams_last_response_is_the_whole_reply(client: openai.OpenAI) -> None:
    ask = {
        "model": "smollm2",
        "input": "Name a fruit.",
        "instructions": "Be brief.",
        "temperature": 0,
        "max_output_tokens": 30,
    }
    whole = client.responses.create(**ask)
    events = list(client.responses.create(**ask, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole.status}",
    ]
    last = events[-1].response
    assert whole.output_text
    assert last.output_text == whole.output_text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert last.usage.output_tokens == whole.usage.output_tokens > 0
    assert last.instructions == "Be brief."


def test_a_conversation_goes_on_from_a_stored_response(client: openai.OpenAI) -> None:
    first = client.responses.create(model="smollm2", input="My name is Ada.", temperature=0, max_output_tokens=20)
    ask = {"model": "smollm2", "temperature": 0, "max_output_tokens": 20}
    second = client.responses.create(**ask, input="What is my name?", previous_response_id=first.id)
    by_hand = client.responses.create(
        **ask,
        input=[
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": [{"type": "output_text", "text": first.output_text}]},
            {"role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]},
        ],
    )
    assert second.output_text == by_hand.output_text
    assert second.usage.input_tokens == by_hand.usage.input_tokens
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    # What stood on it still stands.
    third = client.responses.create(**ask, input="And again?", previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.input_tokens
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(**ask, input="?", previous_response_id=first.id)
    assert refused.value.param == "previous_response_id"


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="smollm2", input="Hi", max_output_tokens=2, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(reply.id)


def test_a_reply_cut_short_says_so(client: openai.OpenAI) -> None:
    reply = client.responses.create(model="smollm2", input="Count to a hundred.", max_output_tokens=3)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_json_schema_is_kept_to(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    reply = client.responses.create(
        model="smollm2",
        input="One or two?",
        text={"format": {"type": "json_schema", "name": "number", "schema": schema, "strict": True}},
        max_output_tokens=30,
    )
    assert json.loads(reply.output_text)["n"] in (1, 2)


def test_a_forced_call_and_its_answer(client: openai.OpenAI) -> None:
    ask = {"model": "smollm2", "tools": [TOOL], "temperature": 0, "max_output_tokens": 80}
    question = "Add 2 and 3."
    events = list(
        client.responses.create(**ask, input=question, tool_choice={"type": "function", "name": "add"}, stream=True)
    )
    [done] = [event for event in events if event.type == "response.function_call_arguments.done"]
    final = events[-1].response
    [call] = final.output
    assert call.type == "function_call"
    assert call.arguments == done.arguments
    assert json.loads(call.arguments).keys() == {"a", "b"}
    answer = client.responses.create(
        **ask,
        previous_response_id=final.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "5"}],
        tool_choice="none",
    )
    assert answer.output_text


def test_logprobs_are_included_on_request(client: openai.OpenAI) -> None:
    reply = client.responses.create(
        model="smollm2", input="Hi", max_output_tokens=4, include=["message.output_text.logprobs"], top_logprobs=2
    )
    entries = reply.output[0].content[0].logprobs
    assert entries
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


def test_the_items_of_a_stored_response_are_listed(client: openai.OpenAI) -> None:
    first = client.responses.create(model="smollm2", input="My name is Ada.", max_output_tokens=5)
    then = client.responses.create(
        model="smollm2", input=[{"role": "user", "content": "And?"}], previous_response_id=first.id, max_output_tokens=3
    )
    listed = list(client.responses.input_items.list(then.id, limit=2, order="asc"))  # two pages
    assert [(item.role, item.content[0].type) for item in listed] == [
        ("user", "input_text"), ("assistant", "output_text"), ("user", "input_text"),
    ]  # fmt: skip
    assert (listed[0].content[0].text, listed[1].content[0].text) == ("My name is Ada.", first.output_text)
    newest = client.responses.input_items.list(then.id)
    assert [item.id for item in newest.data] == [item.id for item in reversed(listed)]
    for wrong in ({"limit": 0}, {"order": "up"}, {"after": "item_x"}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.input_items.list(then.id, **wrong)
        assert refused.value.param in wrong
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_none")


def test_tokens_are_counted_as_they_are_read(client: openai.OpenAI) -> None:
    ask = {"model": "smollm2", "input": "Hello", "instructions": "Be brief.", "tools": [TOOL]}
    counted = client.responses.input_tokens.count(**ask)
    assert counted.input_tokens == client.responses.create(**ask, max_output_tokens=1).usage.input_tokens


def test_a_conversation_that_another_model_began_goes_on(client: openai.OpenAI) -> None:
    def tokens(*items: dict[str, object]) -> int:
        asked = [{"role": "user", "content": "Mend it."}, *items]
        return client.responses.input_tokens.count(model="smollm2", input=asked).input_tokens

    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}
    searched = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    patched = {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** Begin"}
    done = {"type": "custom_tool_call_output", "call_id": "c", "output": "Done"}
    plain = {"type": "function_call", "call_id": "c", "name": "apply_patch", "arguments": '{"input": "*** Begin"}'}
    assert tokens(thought, searched) == tokens()
    assert tokens(patched, done) == tokens(plain, {**done, "type": "function_call_output"}) > tokens()
    for wrong in ({"type": "poem"}, {"type": "custom_tool_call", "call_id": "c", "name": "f"}):
        with pytest.raises(openai.BadRequestError) as refused:
            tokens(wrong)
        assert refused.value.param == "input"
