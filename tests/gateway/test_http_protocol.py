"""Connections that are not as polite as those of the usual clients."""

import asyncio
import json
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from urllib.parse import urlsplit

import psutil
import pytest
import uvicorn
from running_factory import Factory
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from tokenworks.gateway import http, http_protocol, http_server, server
from tokenworks.gateway.http_protocol import HttpProtocol

BODY = json.dumps({"model": "smollm2", "prompt": "One", "max_tokens": 1}).encode()
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"
"""What Java's HttpClient sends before it knows the server."""


def connect(factory: Factory) -> socket.socket:
    address = urlsplit(factory.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of one reply with a content-length."""
    reader = connection.makefile("rb")
    status, length = int(reader.readline().split()[1]), 0
    while (line := reader.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name == b"content-length" else length
    return status, reader.read(length)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_of_another_protocol_is_declined_and_the_request_answered(
    factory: Factory, chunked: bool, pieces: int
) -> None:
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: %d\r\n" % len(BODY)
    said = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + OFFER + framing + b"\r\n" + framed
    cuts = [len(said) * piece // pieces for piece in range(pieces + 1)]
    with connect(factory) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # the connection is as good as before
            for start, end in pairwise(cuts):
                connection.sendall(said[start:end])
            status, body = answer(connection)
            assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 1)
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + OFFER + b"\r\n")
        assert answer(connection)[0] == 200
        connection.sendall(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
        assert answer(connection)[0] == 400


@pytest.mark.parametrize("line", [b"x" * 100_000, b"\r\nX: " + b"y" * 30_000])
def test_a_head_without_end_is_refused_and_not_kept(factory: Factory, line: bytes) -> None:
    process = psutil.Process(factory.process.pid)
    resident_bytes = process.memory_info().rss
    with connect(factory) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(2000):
                connection.sendall(line)
    assert process.memory_info().rss < resident_bytes + 40 * 2**20
    with connect(factory) as connection:
        for part in (b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X: " + b"x" * 60_000 + b"\r\nY: ", b"x" * 6_000):
            connection.sendall(part)
            time.sleep(0.05)  # a piece each
        status, body = answer(connection)
        assert (status, json.loads(body)["error"]["type"]) == (431, "invalid_request_error")


async def app(request: Request) -> Response:
    return Response(await http.read_bytes(request, 1000))


def exchange(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    """A conversation with HttpProtocol."""
    routes = [Route("/", app, methods=["POST"])]
    application = Starlette(routes=routes, exception_handlers=http.ERROR_HANDLERS)
    config = uvicorn.Config(application, lifespan="off", ws="none", timeout_keep_alive=1)

    async def run() -> None:
        state = ServerState()
        listening = await asyncio.get_running_loop().create_server(
            lambda: HttpProtocol(config, state, {}), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        async with asyncio.timeout(20):
            await talk(reader, writer)
        writer.close()
        listening.close()

    asyncio.run(run())


WHOLE = b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"


@pytest.mark.parametrize("said", [b"", b"POST / HTTP/1.1\r\nHost:", WHOLE + b"POST"])
def test_who_never_ends_a_head_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_LIMIT_S", 0.05)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        answers = await reader.read()
        assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200") == said.startswith(WHOLE)

    exchange(talk)


def test_who_never_ends_a_body_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_BODY_PAUSE_S", 0.05)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head
        assert json.loads(body)["error"]["code"] == "request_timeout"

    exchange(talk)


def test_a_slow_body_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_LIMIT_S", 0.2)  # it is over when the body begins

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 6\r\n\r\n")
        for byte in b"slowly":
            await asyncio.sleep(0.05)
            writer.write(bytes([byte]))
        assert (await reader.read()).endswith(b"\r\n\r\nslowly")

    exchange(talk)


async def test_a_drain_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "DRAIN_LIMIT_S", 0.02)
    leaving = http_server._Server(uvicorn.Config(app))
    leaving.ask_to_exit()
    assert (leaving.should_exit, leaving.force_exit) == (True, False)
    await asyncio.sleep(0.1)
    assert leaving.force_exit


def test_as_many_files_may_be_open_as_the_system_lets() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        server.allow_open_files()
        raised, same = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert same == hard
        assert raised == min(hard, server.OPEN_FILES_MAX) or hard == resource.RLIM_INFINITY
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
