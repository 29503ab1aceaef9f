"""The load client against every way a server may frame its reply, and against servers that fail."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tokenworks.bench.client import BenchFailed, Client

EVENTS = (
    b'data: {"choices":[{"text":" a"}]}\n\n',
    b'data: {"choices":[{"text":" b"}]}\n\n',
    b': a comment\n\ndata: {"choices":[],"usage":{"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
)


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def framed_chunked(body: bytes) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, 7)


def framed_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


def framed_close(body: bytes) -> bytes:
    return b"Connection: close\r\n\r\n" + body


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """A socket that answers whatever comes with these bytes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        await reader.readexactly(length)
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("framed", [framed_chunked, framed_length, framed_close])
async def test_counts_by_the_servers_own_usage(framed: Callable[[bytes], bytes]) -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n" + framed(b"".join(EVENTS))) as url:
        done = await Client(url, "m").complete([1, 2, 3], 3)
    assert done.output_tokens == 3
    assert 0 < done.first_token_s <= done.total_s


async def test_counts_chunks_where_the_server_gives_no_usage() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n" + framed_chunked(EVENTS[0] + EVENTS[1] + EVENTS[3])) as url:
        assert (await Client(url, "m").complete("hello", 2)).output_tokens == 2


async def test_a_refusal_is_quoted() -> None:
    async with answering(b"HTTP/1.1 404 Not Found\r\n" + framed_length(b'{"error":"no such model"}')) as url:
        with pytest.raises(BenchFailed, match=r"404.*no such model"):
            await Client(url, "m").complete("hello", 2)


async def test_an_error_inside_a_stream_is_quoted() -> None:
    body = EVENTS[0] + b'data: {"error":{"message":"worker lost"}}\n\n'
    async with answering(b"HTTP/1.1 200 OK\r\n" + framed_chunked(body)) as url:
        with pytest.raises(BenchFailed, match="worker lost"):
            await Client(url, "m").complete("hello", 2)


async def test_a_stream_without_a_token_is_a_failure() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n" + framed_chunked(EVENTS[3])) as url:
        with pytest.raises(BenchFailed, match="without a token"):
            await Client(url, "m").complete("hello", 2)
