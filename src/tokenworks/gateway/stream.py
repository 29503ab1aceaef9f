"""Server-sent events, and replies that notice when the client leaves."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tokenworks.protocol.errors import EngineError, TokenworksError

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
"""How OpenAI's streams end."""


def data_event(body: object) -> bytes:
    """An unnamed event (OpenAI's chat and completions)."""
    return b"data: %b\n\n" % _encode(body)


def named_event(name: str, body: object) -> bytes:
    """An event with a name (OpenAI's responses, Anthropic's messages)."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(body))


class ClientGone(Exception):
    """Nobody reads the reply any more."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; when the client leaves first the work is cancelled, waited for, and ClientGone raised."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


class EventStream:
    """An ASGI response of events.

    The head is sent with the first event, so that what fails before it still gets its own HTTP status; what fails
    later becomes the event `failed(error)` makes, and ends the stream.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], failed: Callable[[TokenworksError], bytes]) -> None:
        self._events = events
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self._send_all(send))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            for each in (task, watcher):
                each.cancel()
            await asyncio.gather(task, watcher, return_exceptions=True)

    async def _send_all(self, send: Send) -> None:
        started = False
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:
                if not started:
                    raise
                known = error if isinstance(error, TokenworksError) else EngineError("internal error; see the log")
                if known is not error:
                    logging.getLogger(__name__).exception("a stream failed", exc_info=error)
                await send({"type": "http.response.body", "body": self._failed(known), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
