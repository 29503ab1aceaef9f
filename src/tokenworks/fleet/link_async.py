"""The gateway's end of a link, on its event loop."""

import asyncio
import logging
from collections.abc import Callable
from typing import cast

import msgspec

from tokenworks.fleet.link import BadFrame, FrameReader, frame
from tokenworks.protocol.messages import ToGateway, ToWorker

_log = logging.getLogger(__name__)


class GatewayLink(asyncio.Protocol):
    """The gateway's end, on its event loop. `on_message` is called for each message, `on_lost` once, last."""

    def __init__(self, on_message: Callable[[ToGateway], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(ToGateway)
        self._transport: asyncio.Transport | None = None
        self.broken = False
        """What came could not be taken: the link was closed for it, not by the other end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._on_message(self._decoder.decode(payload))
        except Exception as error:  # or the loop would close the link and leave us to think that the worker had
            ours = not isinstance(error, BadFrame | msgspec.DecodeError)
            _log.error("A worker sent what cannot be taken (%s); it is taken for dead.", error, exc_info=ours)
            self.broken = True
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def send(self, message: ToWorker) -> None:
        """Never blocks. What is sent after the worker's death is dropped: `on_lost` is on its way."""
        if self._transport is not None:
            self._transport.write(frame(message))

    def close(self) -> None:
        """Drops the link at once, which tells the worker to exit."""
        if self._transport is not None:
            self._transport.abort()
