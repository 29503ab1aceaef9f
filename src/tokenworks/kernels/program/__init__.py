"""The table of operations, as data.

A model architecture describes one step as a Program: a straight list of instructions over activation matrices.
Every value is a float32 matrix with one row per token of the step ([T, width]), or per selected row after
`select_rows` / `pool` ([R, width]). The program is built once, when a model is loaded; a backend compiles it and runs
it for every step, whatever the batch. The numpy reference, the C++ backend and a cost model all read the same list.
"""

from tokenworks.kernels.program.attention import Attend, Keep, Rope
from tokenworks.kernels.program.builder import ProgramBuilder
from tokenworks.kernels.program.collective import AllGather, AllReduce, Broadcast
from tokenworks.kernels.program.elementwise import (
    Activate,
    Add,
    Gate,
    LayerNorm,
    Multiply,
    RmsNorm,
    Scale,
    ScaleRows,
    Softcap,
)
from tokenworks.kernels.program.experts import Expert, Experts, Route
from tokenworks.kernels.program.linear import Linear, LinearHeads
from tokenworks.kernels.program.recurrent import DeltaRule, Recurrent, SelectiveScan, ShortConvolution
from tokenworks.kernels.program.rows import Embed, Inject, Input, Merge, Pause, Pool, RowIndex, SelectRows
from tokenworks.kernels.program.step import CacheLayer, Instruction, KvLayer, Program, StateLayer
from tokenworks.kernels.program.streams import MatchMagnitude, MixStreams, Sparsify
from tokenworks.kernels.program.value import Activation, Value

__all__ = [
    "Activate",
    "Activation",
    "Add",
    "AllGather",
    "AllReduce",
    "Attend",
    "Broadcast",
    "CacheLayer",
    "DeltaRule",
    "Embed",
    "Expert",
    "Experts",
    "Gate",
    "Inject",
    "Input",
    "Instruction",
    "Keep",
    "KvLayer",
    "LayerNorm",
    "Linear",
    "LinearHeads",
    "MatchMagnitude",
    "Merge",
    "MixStreams",
    "Multiply",
    "Pause",
    "Pool",
    "Program",
    "ProgramBuilder",
    "Recurrent",
    "RmsNorm",
    "Rope",
    "Route",
    "RowIndex",
    "Scale",
    "ScaleRows",
    "SelectRows",
    "SelectiveScan",
    "ShortConvolution",
    "Softcap",
    "Sparsify",
    "StateLayer",
    "Value",
]
