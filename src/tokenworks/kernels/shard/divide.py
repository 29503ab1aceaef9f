"""Writes one rank's program.

What a rank has of a value is all of it, its share of the columns (as pieces.py divides them), or one of the addends
that make it when all ranks' are added up: what a map makes that reads a share. Sums of such addends are addends again,
so that ranks come together (AllReduce) no earlier than an instruction needs whole numbers: twice in a layer as a rule,
before its norms. What all have whole is added to addends by the first rank alone, biases too.

Embeddings of tokens are looked up by the first rank alone, which tells the others: they need not know the tokens. So
it does with inputs, which may lie on its device.
Experts are spread, each whole on one rank: no block of a format is cut, and each rank's products are as large as can
be; for few rows at once their load is uneven.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from tokenworks.kernels.flow import reads_of, written_by
from tokenworks.kernels.program import (
    Add,
    AllGather,
    AllReduce,
    Attend,
    Broadcast,
    CacheLayer,
    DeltaRule,
    Embed,
    Experts,
    Input,
    Instruction,
    Keep,
    KvLayer,
    Linear,
    LinearHeads,
    Multiply,
    Program,
    RmsNorm,
    Scale,
    ScaleRows,
    SelectiveScan,
    SelectRows,
    ShortConvolution,
    StateLayer,
    Value,
)
from tokenworks.kernels.shard.cuts import Cut, Cuts, Names
from tokenworks.kernels.shard.layout import Layout
from tokenworks.kernels.shard.pieces import Described, Piece, alike, rows_of, share
from tokenworks.protocol.errors import ModelError


@dataclass(frozen=True, slots=True)
class Divided:
    """What one rank runs, and with which part of the weights."""

    program: Program
    cuts: Cuts


def divide(program: Program, described: Described, rank: int, ranks: int) -> Divided:
    """Raises ModelError for attention whose heads so many ranks cannot share, and more ranks than experts."""
    names = Names()
    main, *sequels = (_Rank(each, described, names, rank, ranks).write() for each in program.steps)
    return Divided(replace(main, sequel=sequels[0] if sequels else None), names.cuts)


class _Rank:
    def __init__(self, program: Program, described: Described, names: Names, rank: int, ranks: int) -> None:
        self._program, self._described, self._names = program, described, names
        self._rank, self._ranks = rank, ranks
        self._layout = Layout(program, described, rank, ranks)
        self._addends: set[Piece] = set()
        """Of which this rank has an addend."""
        self._written: set[int] = set()
        self._last_read = {value.buffer: at for at, op in enumerate(program.instructions) for value in reads_of(op)}
        self._handed_out = [value for value in (program.result, program.hidden) if value is not None]
        self._last_read |= {value.buffer: len(program.instructions) for value in self._handed_out}
        self._layers: list[CacheLayer] = list(program.cache_layers)
        self._out: list[Instruction] = []

    def write(self) -> Program:
        for at, op in enumerate(self._program.instructions):
            self._write(op, at)
            if (output := written_by(op)) is not None:
                self._written.add(output.buffer)
        self._bring_together(*self._handed_out)
        result, hidden = self._gathered(self._program.result), self._program.hidden
        beside = None if hidden is None else self._layout.stored(hidden)
        return Program(tuple(self._out), result, tuple(self._layout.widths), tuple(self._layers), beside)

    def _bring_together(self, *values: Value | None) -> None:
        """Adds up what the ranks have addends of, among these."""
        for value in values:
            run: list[Piece] = []
            for piece in (*self._layout.pieces(value), None) if value is not None else ():
                if piece is not None and piece in self._addends:
                    run.append(piece)
                elif run and value is not None:
                    x = self._layout.stored(Value(value.buffer, run[0][1], run[-1][2] - run[0][1], value.stride))
                    self._out.append(AllReduce(x, x))
                    self._addends -= set(run)
                    run = []

    def _gathered(self, value: Value) -> Value:
        """Whole: what ranks have shares of is put together."""
        layout = self._layout
        if not layout.has_shares([value]):
            return layout.stored(value)
        units = layout.units(value)
        ends = [share(units, self._ranks, rank) for rank in range(self._ranks)]
        widths = tuple((end - begin) * (value.width // units) for begin, end in ends)
        out = layout.new(value.width)
        self._out.append(AllGather(out, layout.stored(value), widths))
        return out

    def _write(self, op: Instruction, at: int) -> None:
        layout = self._layout
        match op:
            case Linear():
                self._linear(op)
            case Attend():
                self._attend(op)
            case Keep():
                self._keep(op)
            case LinearHeads(x=x, output=output, weights=weights) if units := layout.units(output):
                self._bring_together(x)
                names = weights[slice(*layout.range(len(weights), units))]
                self._out.append(replace(op, output=layout.stored(output), x=layout.own(x), weights=names))
            case ShortConvolution():
                self._short_convolution(op)
            case SelectiveScan() if units := layout.units(op.output):
                self._selective_scan(op, units)
            case DeltaRule() if units := layout.units(op.output):
                self._delta_rule(op, units)
            case Experts():
                self._experts(op)
            case Embed(index="token" | "known_token", output=output):
                x = layout.stored(output)
                if self._rank == 0:
                    self._out.append(replace(op, output=x, table=self._names.of(op.table)))
                self._out.append(Broadcast(x, x))
            case Input(output=output):
                x = layout.stored(output)
                self._out += [Input(x)] if self._rank == 0 else []
                self._out.append(Broadcast(x, x))
            case Add(a=a, b=b) if self._adds_up(op.output, a, b):
                self._add(op, at)
            case Scale() | Multiply() | SelectRows() | ScaleRows() if self._adds_up(op.output, op.x):
                if isinstance(op, ScaleRows):
                    self._bring_together(op.by)
                self._out.append(self._as_stored(op))
                self._addends |= set(layout.pieces(op.output))
            case RmsNorm(x=x) if not alike(op) and layout.has_shares([x]):
                self._out.append(replace(op, output=layout.stored(op.output), x=self._gathered(x)))
            case _ if values := alike(op):
                self._alike(op, values)
            case _:
                self._bring_together(*reads_of(op))
                self._out.append(self._as_stored(op))

    def _as_stored(self, op: Any) -> Any:
        """The same on what this rank keeps."""
        values = {each.name: getattr(op, each.name) for each in fields(op)}
        stored = {name: self._layout.stored(value) for name, value in values.items() if isinstance(value, Value)}
        return replace(op, **stored)

    def _linear(self, op: Linear) -> None:
        layout = self._layout
        self._bring_together(op.x)
        out = layout.stored(op.output)
        if units := layout.units(op.x):
            cut = layout.range(op.x.width, units)
            parts = [self._names.of(name, Cut(name, "columns", (cut,))) for name in op.weights]
            self._out.append(Linear(out, layout.own(op.x), tuple(parts), () if self._rank else op.biases))
            self._addends |= set(layout.pieces(op.output))
            return
        names, biases = [], []
        for (begin, end), name, bias in zip(
            rows_of(op, self._described), op.weights, op.biases or (None,) * len(op.weights), strict=True
        ):
            ranges = layout.kept_ranges(op.output.columns(begin, end - begin))
            names.append(self._names.rows(name, ranges, end - begin))
            biases.append(bias and self._names.rows(bias, ranges, end - begin))
        self._out.append(Linear(out, layout.stored(op.x), tuple(names), tuple(biases) if op.biases else ()))

    def _attend(self, op: Attend) -> None:
        layout, values = self._layout, (op.k, op.v)
        self._bring_together(op.q, *values)
        units = layout.units(op.output)
        if not units:
            self._out.append(self._as_stored(op))
            return
        begin, end = heads = layout.range(op.heads, units)
        few, kv_heads = (0, 1) if op.latent else layout.few(units, op.kv_heads)
        k, v = (v and (layout.own(v, few) if few else layout.stored(v)) for v in values)
        if op.cache_layer is not None:
            self._keeps_heads(op.cache_layer, kv_heads)
        sinks = op.sinks and self._names.rows(op.sinks, [heads], op.heads)
        q, output = layout.own(op.q), layout.own(op.output)
        self._out.append(replace(op, output=output, q=q, k=k, v=v, heads=end - begin, kv_heads=kv_heads, sinks=sinks))

    def _keep(self, op: Keep) -> None:
        layout, kept = self._layout, self._program.cache_layers[op.cache_layer]
        assert isinstance(kept, KvLayer)
        self._bring_together(op.k, op.v)
        units = layout.units_of_cache(op.cache_layer)
        if not units:
            self._out.append(self._as_stored(op))
            return
        few, kv_heads = layout.few(units, kept.kv_heads)
        self._keeps_heads(op.cache_layer, kv_heads)
        self._out.append(Keep(layout.own(op.k, few), layout.own(op.v, few), op.cache_layer))

    def _keeps_heads(self, number: int, kv_heads: int) -> None:
        layer = self._layers[number]
        assert isinstance(layer, KvLayer)
        self._layers[number] = replace(layer, kv_heads=kv_heads)

    def _short_convolution(self, op: ShortConvolution) -> None:
        layout, names = self._layout, self._names
        self._bring_together(op.x)
        kept, x = layout.kept_ranges(op.x), layout.stored(op.x)
        weight = names.rows(op.weight, kept, op.x.width)
        bias = op.bias and names.rows(op.bias, kept, op.x.width)
        self._layers[op.cache_layer] = StateLayer((op.kernel - 1) * x.width)
        self._out.append(replace(op, output=layout.stored(op.output), x=x, weight=weight, bias=bias))

    def _selective_scan(self, op: SelectiveScan, units: int) -> None:
        layout, names = self._layout, self._names
        self._bring_together(*reads_of(op))
        begin, end = heads = layout.range(op.heads, units)
        few, groups = layout.few(units, op.groups)
        self._layers[op.cache_layer] = StateLayer((end - begin) * op.head_size * op.state_size)
        self._out.append(
            replace(
                op,
                output=layout.own(op.output),
                x=layout.own(op.x),
                b=layout.own(op.b, few),
                c=layout.own(op.c, few),
                steps=layout.own(op.steps),
                decay=names.rows(op.decay, [heads], op.heads),
                step_bias=names.rows(op.step_bias, [heads], op.heads),
                skip=names.rows(op.skip, [heads], op.heads),
                heads=end - begin,
                groups=groups,
            )
        )

    def _delta_rule(self, op: DeltaRule, units: int) -> None:
        layout, names = self._layout, self._names
        self._bring_together(*reads_of(op))
        begin, end = heads = layout.range(op.heads, units)
        if op.alternating:  # a unit is a whole round of keys, so that head h has those of h % key_heads still
            q, k, key_heads = layout.stored(op.q), layout.stored(op.k), op.key_heads
        else:
            few, key_heads = layout.few(units, op.key_heads)
            q, k = layout.own(op.q, few), layout.own(op.k, few)
        self._layers[op.cache_layer] = StateLayer((end - begin) * op.key_size * op.value_size)
        self._out.append(
            replace(
                op,
                output=layout.own(op.output),
                q=q,
                k=k,
                v=layout.own(op.v),
                steps=layout.own(op.steps),
                rates=layout.own(op.rates),
                decay=names.rows(op.decay, [heads], op.heads),
                step_bias=names.rows(op.step_bias, [heads], op.heads),
                heads=end - begin,
                key_heads=key_heads,
            )
        )

    def _experts(self, op: Experts) -> None:
        self._bring_together(op.x, op.routes)
        count = len(op.experts)
        if count < self._ranks:
            raise ModelError(f"tensor_parallel: {self._ranks} GPUs cannot share {count} experts.")
        own = op.experts[slice(*self._layout.range(count, count))]
        self._out.append(replace(self._as_stored(op), experts=own))
        self._addends |= set(self._layout.pieces(op.output))

    def _adds_up(self, output: Value, *inputs: Value) -> bool:
        """Whether a linear instruction may work on addends: all of some input is such, and none of any is a share."""
        if self._layout.has_shares((output, *inputs)):
            return False
        found = [set(self._layout.pieces(value)) for value in inputs]
        return any(each <= self._addends for each in found) and all(
            each <= self._addends or not each & self._addends for each in found
        )

    def _add(self, op: Add, at: int) -> None:
        addends = [value for value in (op.a, op.b) if set(self._layout.pieces(value)) <= self._addends]
        if len(addends) == 2 or self._rank == 0:
            self._out.append(self._as_stored(op))
        else:
            self._copy(addends[0], op.output, at)
        self._addends |= set(self._layout.pieces(op.output))

    def _copy(self, x: Value, output: Value, at: int) -> None:
        """Where neither is needed apart from the other, both are the same memory."""
        of, to = self._layout.stored(x), self._layout.stored(output)
        alone = self._last_read[x.buffer] <= at and output.buffer not in self._written
        if alone and of.width == of.stride == to.width == to.stride:
            self._layout.move(output.buffer, of.buffer)
        elif of != to:
            self._out.append(Scale(to, of, 1.0))

    def _alike(self, op: Any, values: tuple[Value, ...]) -> None:
        layout = self._layout
        self._bring_together(*reads_of(op))
        lists = [layout.pieces(value) for value in values]
        made = self._as_stored(op)
        if not all(len({layout.is_share(piece) for piece in same}) == 1 for same in zip(*lists, strict=True)):
            # What is whole on every rank, and from here on divided.
            if len(lists[0]) > 1:
                raise ModelError(f"tensor_parallel: a model with {op} cannot be divided among {self._ranks} GPUs.")
            names = [each.name for each in fields(op) if getattr(op, each.name) in values]
            made = replace(made, **{name: layout.own(getattr(op, name)) for name in names})
        if isinstance(op, RmsNorm | Multiply) and op.weight is not None and op.wide:
            weight = self._names.rows(op.weight, layout.own_ranges(op.x), op.x.width)
            made = replace(made, weight=weight)
        self._out.append(made)
