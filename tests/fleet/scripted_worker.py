"""A worker with a script instead of a model, for tests of what happens around a worker.

It speaks the real link and makes one token a step for each request, a function of seed and position alone. Prompts
carry orders: a first token of POISON kills the process, SILENT never gets a token. MODE says how it starts.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from tokenworks.fleet.link import WorkerLink
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
    TokenChunk,
)

POISON, SILENT = 666, 777
VECTOR = b"\x00\x00\x80\x3f" * 4


def token(seed: int, position: int) -> int:
    return (seed * 7919 + position * 104729) % 50000


def main() -> None:
    mode, diary = sys.argv[1], Path(sys.argv[2])
    link_fd = int(sys.argv[3])
    with diary.open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    starts = len(diary.read_text().splitlines())
    if mode == "hangs":
        time.sleep(1000)
    if mode == "unusable":
        sys.stderr.write("weights.gguf: not a GGUF file\n")
        sys.exit(2)
    if mode == "crashes" or (mode == "crashes_twice" and starts <= 2):
        sys.stderr.write("no luck today\n")
        sys.exit(1)
    end = socket.socket(fileno=link_fd)
    if mode == "garbage" or (mode == "garbage_once" and starts == 1):
        WorkerLink(end, os.pipe()[0]).send(Ready("generate", 1000, 50000, 0, 0, {"start": 0.0}))
        end.recv(1, socket.MSG_PEEK)  # a request has come
        end.sendall(b"\xff\xff\xff\xff garbage")
        while mode == "garbage" and end.recv(1000):
            pass
        time.sleep(0 if mode == "garbage" else 1000)  # it exits in good order, or has to be killed
        return
    wake_fd, _ = os.pipe()
    link = WorkerLink(end, wake_fd)
    link.send(Ready("generate", 1000, 50000, 0, 0, {"start": 0.0}))
    running: dict[str, list[int]] = {}
    requests: dict[str, Generate] = {}
    while True:
        chunks = []
        for message in link.receive(wait=not running):
            match message:
                case Generate():
                    link.send(Begun((message.request_id,)))
                    if message.prompt_ids[0] == POISON:
                        os.kill(os.getpid(), signal.SIGSEGV)
                    requests[message.request_id] = message
                    running[message.request_id] = list(message.output_ids)
                case Cancel(request_id):
                    if running.pop(request_id, None) is not None:
                        chunks.append(TokenChunk(request_id, finish=Finish.CANCELLED))
                case Embed(request_id, inputs):
                    link.send(Embedded(request_id, 4, VECTOR * len(inputs)))
                case Drain():
                    return
        for request_id, output in list(running.items()):
            request = requests[request_id]
            if request.prompt_ids[0] == SILENT:
                continue
            first = len(output) == len(request.output_ids)
            output.append(token(request.sampling.seed, len(output)))
            done = len(output) == request.sampling.max_tokens
            chunks.append(
                TokenChunk(
                    request_id,
                    (output[-1],),
                    cached_tokens=1 if first else 0,
                    finish=Finish.LENGTH if done else None,
                )
            )
            if done:
                del running[request_id]
        link.send(StepDone(tuple(chunks), EngineStats(running=len(running)), 1.0))
        time.sleep(0.002)


if __name__ == "__main__":
    try:
        main()
    except EOFError:
        sys.exit(0)
