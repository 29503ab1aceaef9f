"""What the instructions of a program read and write, and how many rows that has: what every backend's plan asks."""

from typing import Literal

from tokenworks.kernels.program import (
    Add,
    AllGather,
    AllReduce,
    Attend,
    Broadcast,
    DeltaRule,
    Embed,
    Experts,
    Gate,
    Input,
    Instruction,
    Keep,
    MatchMagnitude,
    Merge,
    MixStreams,
    Pause,
    Pool,
    Program,
    ScaleRows,
    SelectiveScan,
    SelectRows,
    ShortConvolution,
    Value,
)
from tokenworks.kernels.program.recurrent import inputs_of

RowKind = Literal["tokens", "selected", "sequences", "merged"]
"""What a buffer has a row for: each token, each row whose logits are wanted, each sequence of the step, each of the
rows that Merge makes."""


def reads_of(instruction: Instruction) -> tuple[Value, ...]:
    match instruction:
        case Embed() | Input() | Pause():
            return ()
        case Attend(q=q, k=k, v=v):
            return (q,) if k is None or v is None else (q, k, v)
        case Keep(k=k, v=v):
            return (k, v)
        case MixStreams(x=x, coefficients=coefficients):
            return (x, coefficients)
        case MatchMagnitude(x=x, like=like):
            return (x, like)
        case ShortConvolution() | SelectiveScan() | DeltaRule():
            return inputs_of(instruction)
        case Gate(gate=gate, up=up):
            return (gate, up)
        case Add(a=a, b=b):
            return (a, b)
        case ScaleRows(x=x, by=by):
            return (x, by)
        case Experts(x=x, routes=routes):
            return (x, routes)
        case _:
            return (instruction.x,)


def written_by(instruction: Instruction) -> Value | None:
    return None if isinstance(instruction, Keep | Pause) else instruction.output


def meets_ranks(program: Program) -> bool:
    """It is one of several ranks', and calls on the others as it runs."""
    return any(isinstance(op, AllReduce | AllGather | Broadcast) for step in program.steps for op in step.instructions)


def row_kinds(program: Program) -> list[RowKind]:
    """By buffer number."""
    kinds: list[RowKind] = ["tokens"] * len(program.buffer_widths)
    for instruction in program.instructions:
        match instruction:
            case SelectRows(output=output):
                kinds[output.buffer] = "selected"
            case Pool(output=output):
                kinds[output.buffer] = "sequences"
            case Merge(output=output):
                kinds[output.buffer] = "merged"
            case Embed() | Input() | Pause() | Keep():
                pass
            case _:
                kinds[instruction.output.buffer] = kinds[reads_of(instruction)[0].buffer]
    return kinds
