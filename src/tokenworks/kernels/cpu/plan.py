"""From a Program to the list of kernel calls that is one step: pure, before any memory or weight is touched.

It decides where each buffer lies (buffers whose lives do not meet share memory), where the threads must wait for each
other, where a product's input is brought into the form its weights multiply, and which sums a product takes over.
"""

from collections import Counter
from dataclasses import dataclass, replace

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.flow import RowKind, reads_of, row_kinds, written_by
from tokenworks.kernels.program import (
    Add,
    Attend,
    Experts,
    Instruction,
    Keep,
    Linear,
    LinearHeads,
    Merge,
    Pause,
    Pool,
    Program,
    Recurrent,
    SelectRows,
    Value,
)

LINE_FLOATS = 16
"""Buffers begin on cache lines, so that threads do not share one."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Brings `x` into the form that the weights of the products after it multiply."""

    x: Value
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrepareHeads:
    """The same for the heads' products of `linear`; and copies the columns that pass."""

    linear: LinearHeads


@dataclass(frozen=True, slots=True)
class Store:
    """Writes the step's K and V to a cache layer."""

    k: Value
    v: Value
    cache_layer: int


@dataclass(frozen=True, slots=True)
class Product:
    """A Linear whose output is `residual`, if any, plus the product."""

    linear: Linear
    output: Value
    residual: Value | None


Call = Instruction | Prepare | PrepareHeads | Store | Product


@dataclass(frozen=True, slots=True)
class PlannedCall:
    call: Call
    rows: RowKind
    barrier: bool
    """All threads wait here before it."""


@dataclass(frozen=True, slots=True)
class Plan:
    calls: tuple[PlannedCall, ...]
    buffer_offsets: tuple[int, ...]
    """Floats from the arena's begin, by buffer number."""
    buffer_rows: tuple[RowKind, ...]
    arena_floats: int
    prepared_width: int
    """Of the widest input of a product."""
    merged: int
    """So many tokens are a merged row; 1 where none are."""

    def place(self, value: Value) -> tuple[int, int]:
        """Floats from the arena's begin to its first element, and from row to row."""
        return self.buffer_offsets[value.buffer] + value.offset, value.stride


def make_plan(program: Program, limits: Limits) -> Plan:
    kinds = row_kinds(program)
    merged = max((each.count for each in program.instructions if isinstance(each, Merge)), default=1)
    calls = _place_barriers(_lower(program), kinds)
    rows: dict[RowKind, int] = {
        "tokens": limits.step_tokens,
        "selected": limits.logit_rows,
        "sequences": limits.sequences,
        "merged": limits.step_tokens // merged,
    }
    sizes = [width * rows[kind] for width, kind in zip(program.buffer_widths, kinds, strict=True)]
    kept = [value.buffer for value in (program.result, program.hidden) if value is not None]
    offsets, arena_floats = _place_buffers(calls, sizes, kept)
    prepared_width = max((_prepared_width(planned.call) for planned in calls), default=0)
    return Plan(tuple(calls), tuple(offsets), tuple(kinds), arena_floats, prepared_width, merged)


def _prepared_width(call: Call) -> int:
    match call:
        case Prepare(x=x):
            return x.width
        case PrepareHeads(linear=linear):  # each head's columns are whole blocks of 32
            return len(linear.weights) * -(-linear.inputs // 32) * 32
        case _:
            return 0


def reads(call: Call) -> tuple[Value, ...]:
    match call:
        case Store(k=k, v=v):
            return (k, v)
        case Prepare(x=x):
            return (x,)
        case PrepareHeads(linear=linear):
            return (linear.x,)
        case Product(linear=linear, residual=residual):
            return (linear.x,) if residual is None else (linear.x, residual)
        case _:
            return reads_of(call)


def written(call: Call) -> Value | None:
    match call:
        case PrepareHeads(linear=linear):
            return linear.output
        case Prepare() | Store():
            return None
        case Product(output=output):
            return output
        case _:
            return written_by(call)


def _lower(program: Program) -> list[Call]:
    """Instructions to calls: products get their input prepared, once for neighbours with the same input, and take over
    the sum that follows them; attention with a cache is preceded by storing K and V."""
    uses = Counter(value.buffer for instruction in program.instructions for value in reads(instruction))
    uses.update(value.buffer for value in (program.result, program.hidden) if value is not None)
    calls: list[Call] = []
    prepared: Value | None = None
    last_prepare = -1
    for instruction in program.instructions:
        match instruction:
            case Linear():
                if prepared == instruction.x:
                    prepare = calls[last_prepare]
                    assert isinstance(prepare, Prepare)
                    calls[last_prepare] = replace(prepare, weights=prepare.weights + instruction.weights)
                else:
                    prepared, last_prepare = instruction.x, len(calls)
                    calls.append(Prepare(instruction.x, instruction.weights))
                calls.append(Product(instruction, instruction.output, None))
            case Add(output=output, a=a, b=b) if (residual := _sum_to_take_over(calls, a, b, uses)) is not None:
                product = calls[-1]
                assert isinstance(product, Product)
                calls[-1] = Product(product.linear, output, residual)
            case LinearHeads():
                prepared = None
                calls += [PrepareHeads(instruction), instruction]
            case Attend(k=Value() as k, v=Value() as v, cache_layer=int(layer)):
                calls += [Store(k, v, layer), instruction]
            case Keep(k=k, v=v, cache_layer=layer):
                calls.append(Store(k, v, layer))
            case _:
                calls.append(instruction)
        changed = written(calls[-1])
        if prepared is not None and changed is not None and changed.buffer == prepared.buffer:
            prepared = None
    return calls


def _sum_to_take_over(calls: list[Call], a: Value, b: Value, uses: Counter[int]) -> Value | None:
    """The other addend, if one of them is the whole output of the product just before and nobody else reads it."""
    last = calls[-1] if calls else None
    if not isinstance(last, Product) or last.residual is not None or uses[last.output.buffer] != 1:
        return None
    for addend, other in ((a, b), (b, a)):
        if addend == last.output and addend.width == addend.stride:
            return other
    return None


def _row_wise(call: Call) -> bool:
    return not isinstance(call, Product | LinearHeads | Attend | Experts | Recurrent | Pause)


def _place_barriers(calls: list[Call], kinds: list[RowKind]) -> list[PlannedCall]:
    """Row-wise calls split rows among the threads in the same way, so one that follows another over the same rows
    reads what its own thread wrote. Everything else waits."""
    planned: list[PlannedCall] = []
    for call in calls:
        if isinstance(call, Pause):
            planned.append(PlannedCall(call, "tokens", False))
            continue
        output = written(call)
        rows = kinds[output.buffer if output is not None else reads(call)[0].buffer]
        together = (
            bool(planned)
            and _row_wise(call)
            and _row_wise(planned[-1].call)
            and rows == planned[-1].rows
            and not isinstance(call, SelectRows | Pool | Merge)
        )
        planned.append(PlannedCall(call, rows, bool(planned) and not together))
    return planned


def _place_buffers(calls: list[PlannedCall], sizes: list[int], kept: list[int]) -> tuple[list[int], int]:
    """Offsets and the arena's size. A buffer's memory is free again after the first barrier past its last use: until
    then another thread may still be reading its rows. `kept` are read when the step is done."""
    first: dict[int, int] = {}
    last = dict.fromkeys(kept, len(calls))
    for i, planned in enumerate(calls):
        output = written(planned.call)
        for value in (*reads(planned.call), *(() if output is None else (output,))):
            first.setdefault(value.buffer, i)
            last[value.buffer] = max(last.get(value.buffer, 0), i)
    barriers = [i for i, planned in enumerate(calls) if planned.barrier]
    ends = {buffer: next((b for b in barriers if b > use), len(calls) + 1) for buffer, use in last.items()}

    offsets = [0] * len(sizes)
    arena_floats = 0
    live: list[int] = []
    for buffer in sorted(first, key=lambda buffer: first[buffer]):
        live = sorted((other for other in live if ends[other] > first[buffer]), key=lambda other: offsets[other])
        offset = 0
        for other in live:
            if offset + sizes[buffer] <= offsets[other]:
                break
            offset = max(offset, -(-(offsets[other] + sizes[other]) // LINE_FLOATS) * LINE_FLOATS)
        offsets[buffer] = offset
        live.append(buffer)
        arena_floats = max(arena_floats, offset + sizes[buffer])
    return offsets, arena_floats
