"""/v1/chat/completions through the official client, a real server and a real model."""

import json
import math
import string

import openai
import pytest

ASK = [{"role": "user", "content": "Name three fruits."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"type": "string", "maxLength": 20}},
        },
    },
}


def test_a_greedy_reply_is_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="smollm2", messages=ASK, temperature=0, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model="smollm2",
            messages=ASK,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = whole.choices[0].message.content
    assert text
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_usage_counts_along_where_that_is_asked_for(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    ask = {
        "model": "smollm2",
        "max_tokens": 5,
        "stream": True,
        "stream_options": options,
        "extra_body": {"ignore_eos": True},
    }
    for chunks in (client.chat.completions.create(**ask, messages=ASK), client.completions.create(**ask, prompt="Hi")):
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1] == 5  # half a character makes a token but no chunk


def test_a_prompt_seen_before_comes_from_the_cache_and_changes_nothing(client: openai.OpenAI) -> None:
    ask = [{"role": "user", "content": "Tell me about the sea. " * 12}]
    first, second = (
        client.chat.completions.create(model="smollm2", messages=ask, temperature=0, max_tokens=12) for _ in range(2)
    )
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert second.usage.prompt_tokens_details.cached_tokens < second.usage.prompt_tokens
    assert first.choices[0].message.content == second.choices[0].message.content


def test_a_seed_repeats_and_its_n_replies_differ(client: openai.OpenAI) -> None:
    first, second = (
        client.chat.completions.create(model="smollm2", messages=ASK, seed=7, temperature=1, max_tokens=24, n=3)
        for _ in range(2)
    )
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3  # 24 tokens at temperature 1: equal ones would need the same random stream
    assert first.usage.completion_tokens > 24


def test_n_replies_come_interleaved_in_one_stream_and_are_those_of_the_whole_reply(client: openai.OpenAI) -> None:
    asked = {"model": "smollm2", "messages": ASK, "seed": 7, "temperature": 1, "max_tokens": 24, "n": 2}
    texts, finishes = ["", ""], 0
    for chunk in client.chat.completions.create(**asked, stream=True):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        finishes += choice.finish_reason is not None
    assert finishes == 2
    assert texts == [choice.message.content for choice in client.chat.completions.create(**asked).choices]


def test_without_a_seed_replies_differ(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(model="smollm2", messages=ASK, temperature=1.5, max_tokens=24)
        .choices[0]
        .message.content
        for _ in range(3)
    }
    assert len(texts) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_and_none_of_it_is_shown(client: openai.OpenAI, stream: bool) -> None:
    ask = {"model": "smollm2", "messages": ASK, "temperature": 0, "max_tokens": 40}
    text = client.chat.completions.create(**ask).choices[0].message.content
    stop = text[12:19]  # across several tokens
    ask["stop"] = ["never said", stop]
    if stream:
        chunks = list(client.chat.completions.create(**ask, stream=True))
        shown = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        [choice] = client.chat.completions.create(**ask).choices
        shown, finish = choice.message.content, choice.finish_reason
    assert (shown, finish) == (text[: text.index(stop)], "stop")


def test_logprobs_are_those_of_the_chosen_and_the_likeliest(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="smollm2", messages=ASK, temperature=0, max_tokens=10, logprobs=True, top_logprobs=3
    )
    entries = whole.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == whole.choices[0].message.content
    for entry in entries:
        likeliest = [top.logprob for top in entry.top_logprobs]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)
        assert math.isclose(entry.logprob, likeliest[0])  # greedy
        assert sum(map(math.exp, likeliest)) <= 1 + 1e-6
    as_ids = client.chat.completions.create(
        model="smollm2",
        messages=ASK,
        temperature=0,
        max_tokens=2,
        logprobs=True,
        extra_body={"return_tokens_as_token_ids": True},
    )
    assert all(entry.token.startswith("token_id:") for entry in as_ids.choices[0].logprobs.content)


def test_streamed_logprobs_are_the_whole_replys(client: openai.OpenAI) -> None:
    ask = {"model": "smollm2", "messages": ASK, "temperature": 0, "max_tokens": 10, "logprobs": True}
    whole = client.chat.completions.create(**ask).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in whole]


def test_logit_bias_and_extras_reach_the_sampler(client: openai.OpenAI) -> None:
    banana = client.post("/../tokenize", cast_to=object, body={"model": "smollm2", "prompt": " banana"})["tokens"][0]
    only_bananas = client.chat.completions.create(
        model="smollm2", messages=ASK, max_tokens=5, logit_bias={str(banana): 100}, extra_body={"ignore_eos": True}
    )
    assert only_bananas.choices[0].message.content == " banana" * 5
    stopped = client.chat.completions.create(
        model="smollm2",
        messages=ASK,
        max_tokens=5,
        logit_bias={str(banana): 100},
        extra_body={"stop_token_ids": [banana], "min_tokens": 1},
    )
    assert stopped.choices[0].finish_reason == "stop"
    long = client.chat.completions.create(
        model="smollm2", messages=ASK, max_tokens=60, temperature=0, extra_body={"ignore_eos": True, "top_k": 1}
    )
    assert (long.usage.completion_tokens, long.choices[0].finish_reason) == (60, "length")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_is_a_call_that_fits_its_schema(client: openai.OpenAI, choice: object) -> None:
    ask = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {
        "model": "smollm2",
        "messages": ask,
        "tools": [WEATHER],
        "tool_choice": choice,
        "temperature": 0,
        "max_tokens": 80,
        "parallel_tool_calls": False,
    }
    [whole] = client.chat.completions.create(**asked).choices
    assert whole.finish_reason == "tool_calls"
    [call] = whole.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather"
    assert list(arguments) == ["city"]
    assert isinstance(arguments["city"], str)
    assert not whole.message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(c.index, c.function.name, c.function.arguments) for c in streamed] == [
        (0, "weather", call.function.arguments)
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    # The result goes back, and the conversation goes on.
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[
            *ask,
            whole.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny, 25 degrees"},
        ],
        tools=[WEATHER],
        temperature=0,
        max_tokens=30,
    )
    assert answer.usage.prompt_tokens > 100


def test_tools_are_shown_to_the_model_and_none_hides_them(client: openai.OpenAI) -> None:
    tokens = {
        choice: client.chat.completions.create(
            model="smollm2", messages=ASK, tools=[WEATHER], tool_choice=choice, max_tokens=1
        ).usage.prompt_tokens
        for choice in ("auto", "none")
    }
    assert tokens["auto"] > tokens["none"] + 50


def test_a_json_schema_is_kept_to(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    for seed in range(3):
        reply = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Describe a person."}],
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
            temperature=1.2,
            seed=seed,
            max_tokens=80,
        )
        person = json.loads(reply.choices[0].message.content)
        assert reply.choices[0].finish_reason == "stop"
        assert person.keys() == {"name", "age"}
        assert len(person["name"]) <= 12
        assert 0 <= person["age"] <= 99


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        ({"choice": ["red", "green"]}, {"red", "green"}),
        ({"regex": "(ab){2}"}, {"abab"}),
        ({"regex": r"\d[\w]"}, {a + b for a in string.digits for b in string.digits + string.ascii_letters + "_"}),
        ({"grammar": 'start: "x" | "y"'}, {"x", "y"}),
        ({"grammar": '?start: one\none: "x"'}, {"x"}),
        ({"grammar": 'root ::= "x" | "y"'}, {"x", "y"}),
        ({"json": {"const": "k"}}, {'"k"'}),
    ],
)
def test_structured_outputs_allow_nothing_else(
    client: openai.OpenAI, constraint: dict[str, object], allowed: set[str]
) -> None:
    older = {f"guided_{name}": value for name, value in constraint.items()}
    for extra in ({"structured_outputs": constraint}, older):
        reply = client.chat.completions.create(model="smollm2", messages=ASK, max_tokens=20, extra_body=extra)
        assert reply.choices[0].message.content in allowed


def test_characters_arrive_whole(client: openai.OpenAI) -> None:
    text = "日本語 🙂🙃 é"
    reply = client.chat.completions.create(
        model="smollm2",
        messages=ASK,
        max_tokens=60,
        stream=True,
        extra_body={"structured_outputs": {"choice": [text]}},
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in reply]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 4
