"""Rank 1 of test_cuda_ranks.py: its share of a checkpoint on CPU tensors, run as rank 0 says."""

import sys
from multiprocessing.connection import Connection
from pathlib import Path

import interpreter_shim

from tokenworks.fleet.ranks import follow
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.group import TorchGroup
from tokenworks.kernels.shard import RankBackend
from tokenworks.models.checkpoint import open_checkpoint

if __name__ == "__main__":
    link, folder, meeting = Connection(int(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])
    checkpoint = open_checkpoint(folder)
    backend = RankBackend(CudaBackend("cpu", TorchGroup(1, 2, meeting, "cpu")), 1, 2)
    try:
        with interpreter_shim.installed():
            follow(link, backend.compile(checkpoint.program(), checkpoint.tensors, link.recv()))
    except EOFError:
        pass
