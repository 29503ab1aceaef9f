"""Framing: any message, cut anywhere, on both kinds of ends."""

import asyncio
import os
import socket
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.fleet.link import MAX_FRAME_BYTES, BadFrame, FrameReader, WorkerLink, frame, make_link
from tokenworks.fleet.link_async import GatewayLink
from tokenworks.protocol.messages import (
    Begun,
    Cancel,
    Drain,
    Embed,
    Embedded,
    EngineStats,
    Finish,
    Generate,
    Ready,
    StepDone,
    ToGateway,
    TokenChunk,
    TokenLogprobs,
    ToWorker,
)
from tokenworks.protocol.sampling import Grammar, Sampling

TO_WORKER: list[ToWorker] = [
    Generate(
        "r1",
        (1, 2, 3),
        Sampling(max_tokens=5, seed=2**63, logit_bias={3: -1.5}, grammar=Grammar("regex", "[a-z]+")),
        output_ids=(9,),
        priority=-1,
    ),
    Embed("e", ((1, 2), (3,))),
    Cancel("r1"),
    Drain(),
]
TO_GATEWAY: list[ToGateway] = [
    Ready("generate", 2048, 49152, 10, 20, {"python": 0.1, "pack": 0.2}),
    StepDone(
        (
            TokenChunk("a", (5, 6), logprobs=(TokenLogprobs(5, -0.5, 1, ((5, -0.5),)),), cached_tokens=16),
            TokenChunk("b", finish=Finish.FAILED, error="ü"),
        ),
        EngineStats(running=1),
        0.25,
    ),
    Begun(("a", "b")),
    Embedded("e", 2, b"\x00" * 8),
]


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_payloads_survive_any_cut(payloads, data):
    stream = b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)
    reader, got = FrameReader(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert got == payloads


@pytest.mark.parametrize("message", TO_WORKER)
def test_messages_to_the_worker_arrive_as_they_were(message):
    assert msgspec.msgpack.decode(frame(message)[4:], type=ToWorker) == message


@pytest.mark.parametrize("message", TO_GATEWAY)
def test_messages_to_the_gateway_arrive_as_they_were(message):
    assert msgspec.msgpack.decode(frame(message)[4:], type=ToGateway) == message


def test_a_length_out_of_bounds_is_refused_before_anything_is_kept():
    with pytest.raises(BadFrame, match=str(MAX_FRAME_BYTES + 1)):
        FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))


def test_a_message_too_long_is_not_sent():
    with pytest.raises(BadFrame, match="Embedded"):
        frame(Embedded("e", 1, b"\x00" * MAX_FRAME_BYTES))


@pytest.fixture
def worker_end():
    """A WorkerLink, the other end as a plain socket, and the fd that ends a wait."""
    ours, theirs = make_link()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    with ours, theirs:
        yield WorkerLink(theirs, wake_read), ours, wake_write
    os.close(wake_read)
    os.close(wake_write)


def test_the_worker_takes_what_is_there_and_does_not_wait(worker_end):
    link, gateway, _ = worker_end
    assert link.receive(wait=False) == []
    sent = b"".join(map(frame, TO_WORKER))
    gateway.sendall(sent[:-1])
    assert link.receive(wait=False) == TO_WORKER[:-1]
    gateway.sendall(sent[-1:])
    assert link.receive(wait=True) == TO_WORKER[-1:]


def test_a_signal_ends_the_workers_wait(worker_end):
    link, _, wake_write = worker_end
    timer = threading.Timer(0.05, os.write, (wake_write, b"\x0f"))
    timer.start()
    assert link.receive(wait=True) == []
    timer.join()


def test_the_worker_sees_the_gateways_end(worker_end):
    link, gateway, _ = worker_end
    gateway.close()
    with pytest.raises(EOFError):
        link.receive(wait=True)
    with pytest.raises(EOFError):
        link.send(TO_GATEWAY[0])


def test_the_worker_refuses_what_is_no_message(worker_end):
    link, gateway, _ = worker_end
    gateway.sendall(frame(TO_GATEWAY[0]))
    with pytest.raises(msgspec.ValidationError):
        link.receive(wait=True)


async def _gateway_end(ours: socket.socket) -> tuple[GatewayLink, list[ToGateway], asyncio.Event]:
    got: list[ToGateway] = []
    lost = asyncio.Event()
    _, link = await asyncio.get_running_loop().create_unix_connection(
        lambda: GatewayLink(got.append, lost.set), sock=ours
    )
    return link, got, lost


async def test_the_gateway_hears_everything_said_before_the_end():
    ours, theirs = make_link()
    link, got, lost = await _gateway_end(ours)
    theirs.sendall(b"".join(map(frame, TO_GATEWAY)) + b"\x10\x00\x00\x00half a mess")
    theirs.close()
    await asyncio.wait_for(lost.wait(), 5)
    assert got == TO_GATEWAY
    link.send(Cancel("nobody hears this"))


async def test_the_gateway_drops_a_link_that_talks_nonsense():
    ours, theirs = make_link()
    with theirs:
        _, got, lost = await _gateway_end(ours)
        theirs.sendall(b"\x02\x00\x00\x00\xc1\xc1")
        await asyncio.wait_for(lost.wait(), 5)
        assert got == []
        theirs.settimeout(5)
        assert theirs.recv(1) == b"", "and the worker is told by the end of the stream"
