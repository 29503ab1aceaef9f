"""The other ranks of a worker that runs on several GPUs: processes that it starts, tells what to do, and ends with.

Rank 0 is the worker itself. The others load their share of the model (rank.py), and then do what rank 0 does, call by
call: it tells them before it begins, and they meet inside (kernels/group.py). Nobody answers. If one dies, the worker
does, at once and whatever it waits for; if the worker dies, they do.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from tokenworks.fleet.host import describe_exit
from tokenworks.fleet.settings import UNUSABLE_STATUS, WorkerSettings

LOST_STATUS = 1
"""A worker's exit status when one of its ranks is lost."""
GRACE_S = 5.0
"""So long an error of rank 0's may wait for its cause: what goes wrong here because another rank is gone."""


class Ranks:
    """Ranks 1 and up, from rank 0's side. Starts them at once."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.count = settings.engine.tensor_parallel
        shared_fd = os.memfd_create("tokenworks-ranks")
        self.meeting = Path(f"/proc/self/fd/{shared_fd}")
        """A file for kernels/cuda/group.py: in memory, of nobody else's, and gone with the last rank."""
        self._links: list[Connection] = []
        for rank in range(1, self.count):
            ours, theirs = Pipe()
            with theirs:
                command = (
                    *(sys.executable, "-m", "tokenworks.fleet.rank"),
                    *("--link", str(theirs.fileno()), "--rank", str(rank), "--meeting", str(self.meeting)),
                    *("--settings", msgspec.json.encode(settings).decode()),
                )
                process = subprocess.Popen(command, pass_fds=[theirs.fileno(), shared_fd], stdin=subprocess.DEVNULL)
            self._links.append(ours)
            of_rank = (process, rank)
            threading.Thread(target=self._watch, args=of_rank, name=f"rank-{rank}-watch", daemon=True).start()
        sys.excepthook = _wait_for_the_cause

    def tell(self, message: Any) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with _until_the_end():
            for link in self._links:
                link.send_bytes(data)

    def hear(self) -> list[Any]:
        """The next message of each, in the order of ranks."""
        with _until_the_end():
            return [link.recv() for link in self._links]

    def _watch(self, process: "subprocess.Popen[bytes]", rank: int) -> None:
        status = process.wait()
        if status == 0:  # as it ends when this process does
            return
        if status != UNUSABLE_STATUS:  # then it has said itself what is wrong with the model
            # Not to sys.stderr: PyTorch's excepthook swaps it for a string while it calls ours.
            os.write(2, f"Rank {rank} of {self.count} (tensor_parallel) {describe_exit(status)}.\n".encode())
            status = LOST_STATUS
        os._exit(status)  # the main thread may wait for the lost one in a call that nothing interrupts


@contextlib.contextmanager
def _until_the_end() -> Any:
    """A link that is closed belongs to a rank that is dead: its watch ends this process."""
    try:
        yield
    except (EOFError, ConnectionError):
        time.sleep(GRACE_S)
        raise RuntimeError("A rank has closed its link.") from None


def _wait_for_the_cause(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Another rank's end breaks calls of this one: its watch, which names it, comes first."""
    time.sleep(GRACE_S)
    sys.__excepthook__(kind, error, trace)


def follow(link: Connection, executable: Any) -> None:
    """Does what rank 0 tells. Raises EOFError when it is gone."""
    while True:
        call = pickle.loads(link.recv_bytes())
        getattr(executable, call.method)(*call.arguments)
