"""From a Program to the list of launches that is one step: pure, before any memory or weight is touched.

It decides which neighbours run as one kernel (a layer of a Llama takes seven), in which precision each buffer is kept,
and where it lies (buffers whose lives do not meet share memory). What is a sum over the model's whole depth, or is
chosen by (a residual stream, a router, logits) stays float32; the rest is bfloat16, the form that products read.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.flow import RowKind, reads_of, row_kinds, written_by
from tokenworks.kernels.program import (
    Activate,
    Add,
    Attend,
    Gate,
    Instruction,
    Keep,
    KvLayer,
    LayerNorm,
    Linear,
    LinearHeads,
    Merge,
    Pause,
    Program,
    RmsNorm,
    Rope,
    SelectRows,
    Value,
)

Precision = Literal["float32", "bfloat16"]
ELEMENT_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
ALIGNMENT_BYTES = 256


@dataclass(frozen=True, slots=True)
class Product:
    """A Linear with what follows it: output = residual + product, or the gate of its two halves."""

    output: Value
    linear: Linear
    residual: Value | None = None
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Heads of q, k or v on their way from `x`: normed, turned, either way round."""

    x: Value
    norm: RmsNorm | None = None
    rope: Rope | None = None
    norm_first: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Heads are normed and turned, q written to `output`, K and V to the cache."""

    head_size: int
    q: Part | None = None
    output: Value | None = None
    """Where q goes."""
    k: Part | None = None
    v: Part | None = None
    cache_layer: int | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in (self.q, self.k, self.v) if part is not None)


Call = Instruction | Product | Place


@dataclass(frozen=True, slots=True)
class Launch:
    call: Call
    rows: RowKind


@dataclass(frozen=True, slots=True)
class Plan:
    launches: tuple[Launch, ...]
    buffer_offsets: tuple[int, ...]
    """Bytes from the arena's begin, by buffer number."""
    buffer_rows: tuple[RowKind, ...]
    precisions: tuple[Precision, ...]
    """By buffer number."""
    arena_bytes: int
    merged: int
    """So many tokens are a merged row; 1 where none are."""


def make_plan(program: Program, limits: Limits) -> Plan:
    kinds = row_kinds(program)
    merged = max((each.count for each in program.instructions if isinstance(each, Merge)), default=1)
    calls = _fused(program)
    rows: dict[RowKind, int] = {
        "tokens": max(limits.step_tokens, limits.sequences, limits.logit_rows),
        "selected": limits.logit_rows,
        "sequences": limits.sequences,
        "merged": limits.step_tokens // merged,
    }
    kept = [value.buffer for value in (program.result, program.hidden) if value is not None]
    precisions = _precisions(calls, len(program.buffer_widths), kept)
    sizes = [
        width * rows[kind] * ELEMENT_BYTES[precision]
        for width, kind, precision in zip(program.buffer_widths, kinds, precisions, strict=True)
    ]
    offsets, arena_bytes = _place_buffers(calls, sizes, kept)
    launches = tuple(Launch(call, _rows_of(call, kinds)) for call in calls)
    return Plan(launches, tuple(offsets), tuple(kinds), tuple(precisions), arena_bytes, merged)


def reads(call: Call) -> tuple[Value, ...]:
    match call:
        case Product(linear=linear, residual=residual):
            return (linear.x,) if residual is None else (linear.x, residual)
        case Place():
            return tuple(part.x for part in call.parts)
        case Attend(q=q, cache_layer=int()):
            return (q,)  # K and V are placed before
        case _:
            return reads_of(call)


def written(call: Call) -> Value | None:
    match call:
        case Product(output=output) | Place(output=output):
            return output
        case _:
            return written_by(call)


def _rows_of(call: Call, kinds: list[RowKind]) -> RowKind:
    if isinstance(call, Pause):
        return "tokens"
    output = written(call)
    return kinds[output.buffer if output is not None else reads(call)[0].buffer]


def _fused(program: Program) -> list[Call]:
    """Instructions to calls: a product takes over the sum or the gate that follows it; heads are normed, turned and
    written to the cache at once."""
    instructions = program.instructions
    uses = Counter(value.buffer for instruction in instructions for value in reads_of(instruction))
    uses.update(value.buffer for value in (program.result, program.hidden) if value is not None)
    later: dict[int, list[tuple[int, Value]]] = {}
    for at, instruction in enumerate(instructions):
        for value in reads_of(instruction):
            later.setdefault(value.buffer, []).append((at, value))
    calls: list[Call] = []
    for at, instruction in enumerate(instructions):
        match instruction:
            case Linear():
                calls.append(Product(instruction.output, instruction))
            case Add(output=output, a=a, b=b) if (taken := _with_sum(calls, output, a, b, uses)) is not None:
                calls[-1] = taken
            case Gate() if (taken := _with_gate(calls, instruction, uses)) is not None:
                calls[-1] = taken
            case Attend(cache_layer=int()):
                read_later = [value for values in later.values() for n, value in values if n > at]
                _place_heads(calls, instruction, uses, read_later)
                calls.append(instruction)
            case Keep(k=k, v=v, cache_layer=layer):
                kv = program.cache_layers[layer]
                assert isinstance(kv, KvLayer)
                calls.append(Place(kv.head_size, k=Part(k), v=Part(v), cache_layer=layer))
            case _:
                calls.append(instruction)
    return [_alone(call) for call in calls]


def _alone(call: Call) -> Call:
    """A rotation that nothing took over."""
    return Place(call.head_size, Part(call.x, rope=call), call.output) if isinstance(call, Rope) else call


def _with_sum(calls: list[Call], output: Value, a: Value, b: Value, uses: Counter[int]) -> Product | None:
    """The product just before with the sum, if one addend is its whole output and nobody else reads that."""
    last = calls[-1] if calls else None
    if not isinstance(last, Product) or last.residual is not None or last.gate is not None:
        return None
    if uses[last.output.buffer] != 1:
        return None
    for addend, other in ((a, b), (b, a)):
        if addend == last.output and addend.width == addend.stride:
            return replace(last, output=output, residual=other)
    return None


def _with_gate(calls: list[Call], gate: Gate, uses: Counter[int]) -> Product | None:
    """The product just before with the gate, if that is all that reads its halves."""
    last = calls[-1] if calls else None
    if not isinstance(last, Product) or last.residual is not None or last.gate is not None:
        return None
    whole, half = last.output, gate.output.width
    if uses[whole.buffer] != 2 or whole.width != whole.stride or whole.width != 2 * half:
        return None
    if (gate.gate, gate.up) != (whole.columns(0, half), whole.columns(half, half)):
        return None
    return replace(last, output=gate.output, gate=gate)


def _place_heads(calls: list[Call], attend: Attend, uses: Counter[int], read_later: list[Value]) -> None:
    """Takes the norms and rotations of q, k and v from the end of `calls`, and appends a Place of them."""
    parts = {"q": Part(attend.q)}
    if attend.k is not None and attend.v is not None:
        parts |= {"k": Part(attend.k), "v": Part(attend.v)}
        if attend.latent:
            del parts["v"]
    free = {
        which: not any(_overlap(part.x, value) for value in read_later) for which, part in parts.items()
    }  # what a later instruction reads too must lie where it is
    placed = dict(parts)
    taken = len(calls)
    while taken:
        call = calls[taken - 1]
        which = next((name for name, part in placed.items() if free[name] and _takes(part, call, attend, uses)), None)
        if which is None or not isinstance(call, Rope | RmsNorm):
            break
        part = placed[which]
        if isinstance(call, Rope):
            placed[which] = replace(part, rope=call, norm_first=part.norm is None)
        else:
            placed[which] = replace(part, x=call.x, norm=call, norm_first=True)
        taken -= 1
    ropes = {
        (part.rope.inverse_frequencies, part.rope.turned, part.rope.scale, part.rope.axes)
        for part in placed.values()
        if part.rope
    }
    if len(ropes) > 1:
        placed, taken = parts, len(calls)
    del calls[taken:]
    q = placed["q"]
    if "k" in placed or q.norm is not None or q.rope is not None:
        own = q if q.norm is not None or q.rope is not None else None
        layer = attend.cache_layer if "k" in placed else None
        calls.append(Place(attend.head_size, own, attend.q if own else None, placed.get("k"), placed.get("v"), layer))


def _takes(part: Part, call: Call, attend: Attend, uses: Counter[int]) -> bool:
    """Whether `call` is what makes the part's x, and nobody but the next in line reads that."""
    match call:
        case Rope(output=output, head_size=size):
            return part.rope is None and output == part.x and size == attend.head_size
        case RmsNorm(output=output, x=x, group=group, wide=wide):
            alone = output == x or uses[output.buffer] == 1 + (part.rope is not None and part.norm is None)
            fits = output == part.x and group == attend.head_size and not wide
            return part.norm is None and fits and alone
        case _:
            return False


def _overlap(a: Value, b: Value) -> bool:
    return a.buffer == b.buffer and a.offset < b.offset + b.width and b.offset < a.offset + a.width


def _precisions(calls: list[Call], buffers: int, kept: list[int]) -> list[Precision]:
    """bfloat16 where all who write a buffer and all who read it are content with it."""
    narrow = [True] * buffers
    for buffer in kept:
        narrow[buffer] = False
    for call in calls:
        match call:
            case Product(output=output, residual=residual):
                if residual is not None:
                    narrow[residual.buffer] = narrow[output.buffer] = False
            case RmsNorm(x=x, group=group):
                if group == x.width:
                    narrow[x.buffer] = False
            case LayerNorm(x=x):
                narrow[x.buffer] = False
            case Place() | Attend() | Gate() | Activate() | LinearHeads() | SelectRows() | Pause():
                pass
            case _:
                for value in (*reads(call), written(call)):
                    if value is not None:
                        narrow[value.buffer] = False
    return ["bfloat16" if each else "float32" for each in narrow]


def _place_buffers(calls: list[Call], sizes: list[int], kept: list[int]) -> tuple[list[int], int]:
    """Offsets and the arena's size. A buffer's memory is free again behind its last use. `kept` are read when the step
    is done."""
    first: dict[int, int] = {}
    last = dict.fromkeys(kept, len(calls))
    for i, call in enumerate(calls):
        output = written(call)
        extra = (call.k, call.v) if isinstance(call, Attend) else ()
        for value in (*reads(call), output, *extra):
            if value is not None:
                first.setdefault(value.buffer, i)
                last[value.buffer] = max(last.get(value.buffer, 0), i)
    offsets = [0] * len(sizes)
    arena_bytes = 0
    live: list[int] = []
    for buffer in sorted(first, key=lambda buffer: first[buffer]):
        live = sorted((other for other in live if last[other] >= first[buffer]), key=lambda other: offsets[other])
        offset = 0
        for other in live:
            if offset + sizes[buffer] <= offsets[other]:
                break
            offset = max(offset, -(-(offsets[other] + sizes[other]) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        offsets[buffer] = offset
        live.append(buffer)
        arena_bytes = max(arena_bytes, offset + sizes[buffer])
    return offsets, arena_bytes
