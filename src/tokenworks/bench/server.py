"""The server under test as a process: started and timed, or found by its port, and its memory."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from tokenworks.bench.client import BenchFailed, Client
from tokenworks.protocol.clock import now_s

FIRST_PROMPT = "The capital of France is"
START_LIMIT_S = 300.0


class OwnServer:
    """`tokenworks serve` in a process of its own, on a free port, as a user would start it."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = log
        self._began_s = now_s()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tokenworks", "serve", *arguments, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    async def first_token_s(self) -> float:
        """Seconds from the start of the process to the first token of a first request."""
        client = Client(f"http://127.0.0.1:{self.port}")
        while not await client.ready():
            if self.process.poll() is not None or now_s() - self._began_s > START_LIMIT_S:
                raise BenchFailed(f"tokenworks serve did not start:\n{self._log.read_text()[-2000:]}")
            await asyncio.sleep(0.01)
        client.model = (await client.models())[0]
        await client.complete(FIRST_PROMPT, 1)
        return now_s() - self._began_s

    def stop(self) -> None:
        """Ends it as Ctrl-C does."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def listening_process(port: int) -> psutil.Process | None:
    """The local process that listens on `port`, if we may see it."""
    for connection in psutil.net_connections("tcp"):
        local = connection.laddr
        if local and local.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
            return psutil.Process(connection.pid)
    return None


def memory_bytes(process: psutil.Process) -> int:
    """Resident memory of a process and its descendants now; pages that they share count once.

    Linux: Pss of /proc/PID/smaps_rollup.
    """
    total = 0
    for one in (process, *process.children(recursive=True)):
        rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total
