"""A small HTTP client for load: it shares the machine with the server, so it must cost next to nothing.

Plain asyncio streams, HTTP/1.1, one connection a request; reads server-sent events and notes when each came.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from tokenworks.protocol.clock import now_s
from tokenworks.protocol.errors import FactoryError, InvalidRequest


class BenchFailed(FactoryError):
    """The server under test answered with an error, or not at all."""

    code = "bench_failed"


@dataclass(frozen=True, slots=True)
class Streamed:
    """One finished completion; times count from the moment the request was sent."""

    output_tokens: int
    first_token_s: float
    total_s: float


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


class Client:
    """Talks to the server at `url` (http only: the bench measures the server, not TLS)."""

    def __init__(self, url: str, model: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or parts.hostname is None:
            raise InvalidRequest(f"--url {url}: expected http://HOST:PORT", param="url")
        self.host, self.port = parts.hostname, parts.port or 80
        self.base = parts.path.rstrip("/").removesuffix("/v1")
        self.model = model
        self._decode_chunk = msgspec.json.Decoder(_Chunk)

    async def models(self) -> list[str]:
        """The names the server serves."""
        reply = msgspec.json.decode(await self._whole("GET", "/v1/models"))
        return [entry["id"] for entry in reply["data"]]

    async def ready(self) -> bool:
        """Whether the server answers /ready with 200."""
        try:
            await self._whole("GET", "/ready")
        except (OSError, BenchFailed, EOFError):
            return False
        return True

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, from the server itself. One body serves vLLM's /tokenize, llama.cpp's and ours."""
        body = {"model": self.model, "prompt": text, "content": text, "add_special_tokens": False}
        return list(msgspec.json.decode(await self._whole("POST", "/tokenize", body))["tokens"])

    async def complete(self, prompt: Sequence[int] | str, max_tokens: int) -> Streamed:
        """One greedy completion of exactly `max_tokens` tokens, streamed."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began_s = now_s()
        first_s, made, counted = None, 0, None
        async for data in self._events("/v1/completions", body):
            chunk = self._decode_chunk.decode(data)
            if chunk.error:
                raise BenchFailed(f"the server ended a stream with an error: {bytes(chunk.error).decode()[:300]}")
            if chunk.choices:
                first_s = first_s or now_s()
                made += 1
            if chunk.usage is not None:
                counted = chunk.usage.completion_tokens
        ended_s = now_s()
        if first_s is None:
            raise BenchFailed("the server ended a stream without a token")
        # Servers may put several tokens in a chunk: their own count decides where they give one.
        return Streamed(counted if counted is not None else made, first_s - began_s, ended_s - began_s)

    async def _send(
        self, method: str, path: str, body: object | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int, dict[str, str]]:
        payload = msgspec.json.encode(body) if body is not None else b""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        head = f"{method} {self.base}{path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
        if payload:
            head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        writer.write(head.encode() + b"\r\n" + payload)
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        return reader, writer, int(status_line.split(" ", 2)[1]), headers

    async def _whole(self, method: str, path: str, body: object | None = None) -> bytes:
        reader, writer, status, headers = await self._send(method, path, body)
        try:
            content = b"".join([piece async for piece in _pieces(reader, headers)])
        finally:
            writer.close()
        if status != 200:
            raise BenchFailed(f"{method} {path} answered {status}: {content.decode(errors='replace')[:300]}")
        return content

    async def _events(self, path: str, body: object) -> AsyncIterator[bytes]:
        """The data of each server-sent event up to [DONE]."""
        reader, writer, status, headers = await self._send("POST", path, body)
        try:
            if status != 200:
                content = b"".join([piece async for piece in _pieces(reader, headers)])
                raise BenchFailed(f"POST {path} answered {status}: {content.decode(errors='replace')[:300]}")
            rest = b""
            async for piece in _pieces(reader, headers):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        data = line[5:].strip()
                        if data == b"[DONE]":
                            return
                        yield data
        finally:
            writer.close()


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """A reply's body as it arrives (RFC 9112, section 6)."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
            yield await reader.readexactly(size)
            await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece
