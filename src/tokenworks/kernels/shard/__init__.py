"""A program and its weights, divided among ranks that run every step together (tensor parallelism: Megatron-LM, arXiv
1909.08053): each rank has some heads, some of a network's inner columns, some experts, some of the vocabulary.

pieces.py finds what can be divided, divide.py writes a rank's program, cuts.py gives it its part of the weights. All of
it is pure, and knows programs only: neither families of models nor devices. backend.py has a backend compile a rank's
share.
"""

from tokenworks.kernels.shard.backend import Call, RankBackend, Tell, share_of
from tokenworks.kernels.shard.cuts import Cut, Cuts, Shard, cut_of
from tokenworks.kernels.shard.divide import Divided, divide
from tokenworks.kernels.shard.pieces import Described

__all__ = [
    "Call",
    "Cut",
    "Cuts",
    "Described",
    "Divided",
    "RankBackend",
    "Shard",
    "Tell",
    "cut_of",
    "divide",
    "share_of",
]
