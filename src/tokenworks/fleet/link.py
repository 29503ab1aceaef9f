"""The link between the gateway and one worker: protocol messages, framed, over a socketpair.

A frame is the payload's length (4 bytes, little-endian) and the payload (one MessagePack message). Nothing lies on
disk, nobody else can connect, and when either side dies the other one reads the end of the stream.

The worker's side is here, the gateway's in link_async.py: a worker need not load asyncio.
"""

import select
import socket

import msgspec

from tokenworks.protocol.messages import ToGateway, ToWorker

MAX_FRAME_BYTES = 64 << 20
"""Above any message of a 16 MiB request body; a longer frame means that the stream is out of step."""

_SOCKET_BUFFER_BYTES = 4 << 20
"""Room for hundreds of steps, so that a gateway that pauses does not stop the worker."""

_RECEIVE_BYTES = 256 << 10


class BadFrame(Exception):
    """What came over the link is no message of this protocol; the link cannot be used any more."""


class FrameReader:
    """Cuts a byte stream, in pieces of any size, into payloads."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes. Raises BadFrame when a length is out of bounds."""
        buffer = self._buffer
        buffer += data
        payloads = []
        start = 0
        while len(buffer) - start >= 4:
            length = int.from_bytes(buffer[start : start + 4], "little")
            if length > MAX_FRAME_BYTES:
                raise BadFrame(f"A frame of {length} bytes; the most is {MAX_FRAME_BYTES}.")
            end = start + 4 + length
            if len(buffer) < end:
                break
            payloads.append(bytes(buffer[start + 4 : end]))
            start = end
        del buffer[:start]
        return payloads


_encoder = msgspec.msgpack.Encoder()


def frame(message: ToWorker | ToGateway) -> bytes:
    """A message as it travels. Raises BadFrame when it is too long."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise BadFrame(f"A {type(message).__name__} of {len(payload)} bytes; the most is {MAX_FRAME_BYTES}.")
    return len(payload).to_bytes(4, "little") + payload


def make_link() -> tuple[socket.socket, socket.socket]:
    """The two ends: the gateway's, and the one that the worker inherits."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    return ours, theirs


class WorkerLink:
    """The worker's end: blocking, for one thread."""

    def __init__(self, end: socket.socket, wake_fd: int) -> None:
        """`wake_fd` becoming readable ends a wait (a signal's wake-up pipe)."""
        end.setblocking(True)
        self._socket = end
        self._reader = FrameReader()
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._poll.register(wake_fd, select.POLLIN)

    def receive(self, *, wait: bool) -> list[ToWorker]:
        """All messages that have come; with `wait`, sleeps until something comes or the wait is ended from outside.

        Raises EOFError when the gateway is gone, BadFrame or msgspec.ValidationError for what is no message.
        """
        if wait:
            self._poll.poll()
        messages: list[ToWorker] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return messages
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            messages += [self._decoder.decode(payload) for payload in self._reader.feed(data)]

    def send(self, message: ToGateway) -> None:
        """Raises EOFError when the gateway is gone."""
        try:
            self._socket.sendall(frame(message))
        except ConnectionError as error:
            raise EOFError from error
