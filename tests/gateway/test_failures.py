"""What clients are told when the factory itself is in trouble: a pool with a script stands in for the workers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from tokenworks.config import ServerSettings
from tokenworks.fleet.pool import PoolModel, WorkerStatus
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.gateway import responses_store
from tokenworks.gateway.app import build_app
from tokenworks.gateway.responses_store import ResponsesStore, StoredResponse
from tokenworks.protocol.errors import FactoryError, WorkerLost
from tokenworks.protocol.messages import NOT_FINITE, Finish, Generate, Ready, TokenChunk

Script = Callable[[Generate], AsyncIterator[TokenChunk]]
MESSAGES = [{"role": "user", "content": "Hi"}]


class ScriptedPool:
    adapters: ClassVar[dict[str, str]] = {}

    def __init__(self, script: Script) -> None:
        self.generated: list[Generate] = []
        self._script = script

    def statuses(self) -> list[WorkerStatus]:
        return []

    async def ready(self, name: str) -> Ready:
        return Ready("generate", 500, 49152, 0, 0, {})

    async def generate(self, name: str, request: Generate) -> AsyncIterator[TokenChunk]:
        self.generated.append(request)
        async for chunk in self._script(request):
            yield chunk


@pytest.fixture
def serve(smollm2: Path, tmp_path: Path) -> Callable[..., httpx.AsyncClient]:
    def start(script: Script, **settings: int) -> httpx.AsyncClient:
        models = [PoolModel("m", WorkerSettings(path=str(smollm2)))]
        store = ResponsesStore(tmp_path / "responses.sqlite")
        app = build_app(ScriptedPool(script), models, ServerSettings(**settings), store)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://factory")

    return start


async def lost_after_two(request: Generate) -> AsyncIterator[TokenChunk]:
    yield TokenChunk(request.request_id, (1000,))
    yield TokenChunk(request.request_id, (1001,))
    raise WorkerLost("no worker is left")


async def impossible(request: Generate) -> AsyncIterator[TokenChunk]:
    yield TokenChunk(request.request_id, finish=Finish.FAILED, error="the grammar is too much")


async def not_a_number(request: Generate) -> AsyncIterator[TokenChunk]:
    yield TokenChunk(request.request_id, finish=Finish.FAILED, error=NOT_FINITE)


async def lost_at_once(request: Generate) -> AsyncIterator[TokenChunk]:
    raise WorkerLost("no worker is left")
    yield


async def broken(request: Generate) -> AsyncIterator[TokenChunk]:
    yield TokenChunk(request.request_id, (1000,))
    raise RuntimeError("a bug, with a secret in it")


BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 10},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("script", [lost_after_two, broken])
async def test_a_stream_that_fails_later_ends_with_an_error_event(
    serve: Callable[..., httpx.AsyncClient], path: str, script: Script
) -> None:
    async with serve(script) as client:
        reply = await client.post(path, json={"model": "m", "stream": True, **BODIES[path]})
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert reply.status_code == 200
    assert not reply.text.endswith("[DONE]\n\n")
    error = events[-1].get("error") or events[-1]["response"]["error"]
    assert "message" in error
    assert ("no worker is left" in error["message"]) == (script is lost_after_two)
    assert "secret" not in reply.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/responses"])
@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        (impossible, 400, "the grammar is too much"),
        (not_a_number, 500, "not finite"),
        (lost_at_once, 503, "no worker is left"),
    ],
)
async def test_what_fails_before_the_first_token_has_its_own_status(
    serve: Callable[..., httpx.AsyncClient], path: str, stream: bool, script: Script, status: int, said: str
) -> None:
    async with serve(script) as client:
        reply = await client.post(path, json={"model": "m", "stream": stream, **BODIES[path]})
    assert reply.status_code == status
    assert said in reply.json()["error"]["message"]


async def test_a_bug_is_a_500_in_shape_without_its_details(serve: Callable[..., httpx.AsyncClient]) -> None:
    async with serve(broken) as client:
        reply = await client.post("/v1/completions", json={"model": "m", "prompt": "Hi"})
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error"
    assert "secret" not in reply.text


async def test_a_client_that_leaves_while_it_sends_its_body_is_no_failure_of_ours(
    smollm2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ResponsesStore(tmp_path / "responses.sqlite")
    app = build_app(ScriptedPool(broken), [PoolModel("m", WorkerSettings(path=str(smollm2)))], ServerSettings(), store)
    received = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    sent: list[object] = []

    async def receive() -> dict[str, object]:
        return received.pop(0)

    async def send(message: object) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert not caplog.records
    assert sent[0]["status"] == 499


async def test_too_many_at_once_are_told_to_come_back(serve: Callable[..., httpx.AsyncClient]) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: Generate) -> AsyncIterator[TokenChunk]:
        running.set()
        await go_on.wait()
        yield TokenChunk(request.request_id, (1000,), finish=Finish.LENGTH)

    body = {"model": "m", "messages": MESSAGES}
    async with serve(slow, max_waiting=3) as client:
        first = asyncio.create_task(client.post("/v1/chat/completions", json={**body, "n": 2}))
        await running.wait()
        for stream in (False, True):
            refused = await client.post("/v1/chat/completions", json={**body, "n": 2, "stream": stream})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/chat/completions", json={**body, "n": 3})).status_code == 200
        never = await client.post("/v1/chat/completions", json={**body, "n": 4})
        assert never.status_code == 400


async def test_only_the_first_of_n_starts_before_the_prompt_is_cached(smollm2: Path, tmp_path: Path) -> None:
    started: list[str] = []

    async def script(request: Generate) -> AsyncIterator[TokenChunk]:
        started.append(request.request_id)
        if len(started) == 1:
            await asyncio.sleep(0.05)
            assert len(started) == 1
        yield TokenChunk(request.request_id, (1000,), finish=Finish.LENGTH)

    pool = ScriptedPool(script)
    store = ResponsesStore(tmp_path / "responses.sqlite")
    app = build_app(pool, [PoolModel("m", WorkerSettings(path=str(smollm2)))], ServerSettings(), store)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://factory") as client:
        reply = await client.post("/v1/chat/completions", json={"model": "m", "messages": MESSAGES, "n": 3})
    assert len(reply.json()["choices"]) == 3
    assert len({request.sampling.seed for request in pool.generated}) == 3


async def test_the_prompt_a_chat_template_refuses_is_the_clients_fault(serve: Callable[..., httpx.AsyncClient]) -> None:
    async with serve(impossible) as client:
        body = {"model": "m", "messages": MESSAGES, "chat_template_kwargs": {"add_generation_prompt": False}}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 400


def test_the_store_is_bounded_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses_store, "TOTAL_BYTES_MAX", 2500)
    store = ResponsesStore(tmp_path / "responses.sqlite")
    big = StoredResponse(b"x" * 100, b"y" * 1000)
    for name in "abc":
        store.put(name, big)
    assert store.get("a") is None
    assert store.get("c") == big
    store.close()
    again = ResponsesStore(tmp_path / "responses.sqlite")
    assert again.get("b") == big
    assert again.delete("b")
    assert not again.delete("b")
    monkeypatch.setattr(responses_store, "RESPONSES_MAX", 3)
    for name in "defg":
        again.put(name, StoredResponse(b"{}", b"[]"))
    assert [name for name in "cdefg" if again.get(name)] == ["e", "f", "g"]
    again.close()


def test_a_full_disk_loses_the_record_not_the_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ResponsesStore(tmp_path / "responses.sqlite")
    store._connection.execute("PRAGMA max_page_count = 1")  # SQLite's own way to say that the disk is full
    store.put("a", StoredResponse(b"x" * 100_000, b"[]"))
    assert "response a is not kept" in caplog.text
    assert store.get("a") is None
    store.close()
    (tmp_path / "file").touch()
    with pytest.raises(FactoryError, match="TOKENWORKS_HOME"):
        ResponsesStore(tmp_path / "file" / "responses.sqlite")
