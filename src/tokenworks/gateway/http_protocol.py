"""uvicorn's HTTP protocol with what it leaves open: what is no HTTP is answered in the API's error shape, a request's
head has bounds in size and time, and a client that offers another protocol is answered in this one."""

import asyncio
from http import HTTPStatus

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenworks.gateway.http import openai_error
from tokenworks.protocol.errors import InvalidRequest, UserError

HEAD_BYTES_MAX = 65_536
"""A little more passes: what comes in one piece is read in one piece."""
HEAD_LIMIT_S = 60
"""From a request's first byte, or from the connection's beginning, to the end of its head."""


class HeadTooLarge(UserError):
    status = 431


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_head()

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        else:
            if was_in_head and self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_BYTES_MAX:
                    self._refuse(HeadTooLarge(f"a request's head is larger than {HEAD_BYTES_MAX} bytes"))

    def _decline(self, rest: bytes) -> None:
        """A server may go on in the protocol it speaks (RFC 9110, 7.8). Clients rely on that: Java's offers HTTP/2 with
        each first request. The parser, which took `rest` for the other protocol's, is given the request without the
        offer."""
        kept = [(name, value) for name, value in self.headers if name != b"upgrade"]
        if len(kept) == len(self.headers):  # CONNECT offers nothing, it asks for a tunnel
            self.send_400_response("there is no proxy here.")
            return
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in kept]
        self.data_received(b"\r\n".join([*lines, b"", rest]))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._limit_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unset_keepalive_if_required()
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _limit_head(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_LIMIT_S, self.timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(f"this is not HTTP/1.1 as it should be: {msg}"))

    def _refuse(self, error: UserError) -> None:
        """Before there is a request, so also before it is known whose shape the client expects: in OpenAI's."""
        body = msgspec.json.encode(openai_error(error))
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
