"""Bad input gets a clear refusal in the API's own shape, quickly, and the neighbours do not notice."""

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest
from running_factory import Factory

CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def deep(levels: int) -> object:
    value: object = {}
    for _ in range(levels):
        value = {"items": value, "type": "array"}
    return value


SCHEMA = "response_format.json_schema.schema"

# (what is changed in a good request, the field that the refusal names)
BAD_FIELDS: list[tuple[dict[str, object], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]}]},
     "messages"),
    ({"model": 7}, "model"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"n": 0}, "n"),
    ({"n": 1_000_000}, "n"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ["x"] * 100}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [10**9]}, "stop_token_ids"),
    ({"min_tokens": 5}, "min_tokens"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias"),
    ({"logit_bias": {"1": 1000}}, "logit_bias[...]"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"priority": 2**40}, "priority"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"function": {"name": "f"}}], "tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice"),
    ({"tools": [{"function": {"name": "f"}}], "tool_choice": {"function": {"name": "f"}}}, "tool_choice.type"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"response_format": {"type": "poem"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "poem"}}}}, SCHEMA),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 100] * 2000}}}}, SCHEMA),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": deep(900)}}}, SCHEMA),
    ({"structured_outputs": {"regex": "(" * 3000}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "ends in \\"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs.grammar"),
    ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar"),
    ({"tools": [{"function": {"name": "f", "parameters": {"not": {}}}}], "tool_choice": "required"}, "tools"),
    ({"tools": [{"function": {"name": "f", "parameters": deep(400)}}], "tool_choice": "required"}, "tools"),
    ({"structured_outputs": {"regex": "[^\\s\\S]"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json"),
    ({"structured_outputs": {"grammar": "start: start"}}, "structured_outputs.grammar"),
    ({"messages": [{"role": "user", "content": ""}] * 9000}, "messages"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "b"}, "structured_outputs"),
    ({"guided_regex": "("}, "structured_outputs.regex"),
    ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), BAD_FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_bad_field_is_named(http: httpx.Client, change: dict[str, object], param: str) -> None:
    reply = http.post("/v1/chat/completions", json={**CHAT, **change}, timeout=10)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert 0 < len(error["message"]) < 1000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("grammar", [{"regex": "(a{1000}){1000}{1000}"}, {"grammar": 'start: "a"{1000000}'}])
def test_a_grammar_that_proves_too_much_only_at_work_is_the_clients_mistake(
    http: httpx.Client, grammar: dict[str, str], stream: bool
) -> None:
    reply = http.post("/v1/chat/completions", json={**CHAT, "structured_outputs": grammar, "stream": stream})
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "the grammar cannot go on: " in reply.json()["error"]["message"]


def test_a_compressed_body_is_refused_by_name(http: httpx.Client) -> None:
    for path in ("/v1/chat/completions", "/v1/messages"):
        reply = http.post(path, content=gzip.compress(json.dumps(CHAT).encode()), headers={"content-encoding": "gzip"})
        assert reply.status_code == 400
        assert "gzip" in reply.json()["error"]["message"]


def test_a_conversation_kept_elsewhere_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="smollm2", input="And then?", conversation="conv_1")
    assert refused.value.param == "conversation"


def test_too_many_prompts_are_refused_before_they_are_read(http: httpx.Client) -> None:
    reply = http.post("/v1/completions", json={"model": "smollm2", "prompt": ["a" * 8] * 80_000}, timeout=10)
    assert (reply.status_code, "sequences" in reply.json()["error"]["message"]) == (400, True)


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"model": "smollm2", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "smollm2", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"x": ' + b"[" * 200_000,
    b'{"model": "smollm2", "messages": ' + b'[{"role":' * 50_000,
    b'{"temperature": NaN}',
    b'{"seed": 1e999}',
]


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize"]
)
@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_body_that_is_no_request_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    reply = http.post(path, content=body, headers={"content-type": "application/json"}, timeout=10)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_an_integer_may_be_written_as_a_float(client: openai.OpenAI, http: httpx.Client) -> None:
    """JSON knows one kind of number, and so do some clients' languages."""
    whole = {"max_tokens": 2.0, "n": 1e0, "seed": 7.0, "top_k": 5.0, "temperature": 1, "logit_bias": {"5": 1.0}}
    one, other = (
        http.post("/v1/chat/completions", content=json.dumps({**CHAT, **numbers})).json()
        for numbers in (whole, {**whole, "max_tokens": 2, "n": 1, "seed": 7, "top_k": 5})
    )
    assert one["usage"]["completion_tokens"] == 2
    assert one["choices"] == other["choices"]


@pytest.mark.parametrize(
    "said", [b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\nbad header\r\n\r\n"]
)
def test_what_is_no_http_is_answered_in_the_apis_shape(http: httpx.Client, said: bytes) -> None:
    address = urlsplit(str(http.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(said)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_404_and_says_what_is_served(client: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=CHAT["messages"])
    assert missing.value.code == "model_not_found"
    assert "smollm2" in missing.value.message
    assert http.get("/v1/models/gpt-4").status_code == 404
    assert [model.id for model in client.models.list()] == ["smollm2", "minilm", "crossing"]
    assert client.models.retrieve("minilm").id == "minilm"


@pytest.mark.parametrize("repeat", [1000, 60_000])
def test_a_prompt_longer_than_the_context_is_refused(client: openai.OpenAI, repeat: int) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "word " * repeat}])
    assert refused.value.code == "context_length_exceeded"
    assert (refused.value.param, "max_tokens" in refused.value.message) == ("messages", False)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**CHAT, "max_tokens": 100_000})
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="smollm2", input="word " * repeat)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


def test_unknown_paths_and_wrong_methods(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    assert http.post("/v1/messages/nothing", json={}).json()["type"] == "error"
    wrong = http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "error" in wrong.json()
    assert set(http.put("/v1/responses/resp_1").headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}


def test_a_body_announced_too_large_is_refused_unread(factory: Factory, http: httpx.Client) -> None:
    address = urlsplit(str(http.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 104857600\r\n\r\n{"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_100_mb_without_a_length_are_refused_and_not_kept(factory: Factory, http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1600):
            yield b" " * 65536

    before = factory.workers()
    process = psutil.Process(factory.process.pid)
    resident_bytes = process.memory_info().rss
    reply = http.post("/v1/chat/completions", content=endless())
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    assert process.memory_info().rss < resident_bytes + 40 * 2**20
    assert factory.workers() == before


def test_a_neighbour_streams_on_through_all_of_it(client: openai.OpenAI, http: httpx.Client) -> None:
    ask = {**CHAT, "temperature": 0, "max_tokens": 120, "extra_body": {"ignore_eos": True}}
    alone = client.chat.completions.create(**ask).choices[0].message.content
    texts: list[str] = []

    def stream() -> None:
        chunks = client.chat.completions.create(**ask, stream=True)
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))

    neighbour = threading.Thread(target=stream)
    neighbour.start()
    for body in BAD_BODIES:
        http.post("/v1/chat/completions", content=body)
    for change, _ in BAD_FIELDS:
        http.post("/v1/chat/completions", content=json.dumps({**CHAT, **change}))
    neighbour.join()
    assert texts == [alone]
