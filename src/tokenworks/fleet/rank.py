"""A process that is one rank, but the first, of a worker on several GPUs.

    python -m tokenworks.fleet.rank --link FD --rank N --meeting FILE --settings JSON

Loads its share of the model, and runs what rank 0 runs (ranks.py), until that is gone. The cache has as many blocks as
the rank with the least room can take.
"""

import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from tokenworks.fleet.device import rank_backend
from tokenworks.fleet.lifeline import die_with
from tokenworks.fleet.load import limits_for, open_model, suited
from tokenworks.fleet.ranks import follow
from tokenworks.fleet.settings import UNUSABLE_STATUS, WorkerSettings
from tokenworks.kernels.backend import Executable
from tokenworks.kernels.shard import RankBackend
from tokenworks.protocol.errors import ModelError


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    for number in (signal.SIGINT, signal.SIGTERM):  # the worker decides when it ends
        signal.signal(number, signal.SIG_IGN)
    link = Connection(int(options["--link"]))
    die_with(link)
    settings = msgspec.json.decode(options["--settings"], type=WorkerSettings)
    try:
        executable = _load(settings, int(options["--rank"]), Path(options["--meeting"]), link)
    except ModelError as error:
        sys.stderr.write(error.message + "\n")
        return UNUSABLE_STATUS
    follow(link, executable)
    return 0


def _load(settings: WorkerSettings, rank: int, meeting: Path, link: Connection) -> Executable:
    checkpoint = open_model(Path(settings.path), settings)
    ranks = settings.engine.tensor_parallel
    backend = RankBackend(rank_backend(settings, rank, meeting), rank, ranks)
    checkpoint = suited(checkpoint, settings, backend)
    program = checkpoint.program(guesses=link.recv())
    limits = limits_for(settings, backend, checkpoint, [backend.share(program, checkpoint.tensors)])
    link.send((limits.blocks, limits.state_slots))
    blocks, state_slots = link.recv()
    return backend.compile(program, checkpoint.tensors, replace(limits, blocks=blocks, state_slots=state_slots))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EOFError:  # rank 0 is gone
        sys.exit(0)
