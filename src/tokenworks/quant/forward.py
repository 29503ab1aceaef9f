"""A float32 forward pass in numpy, one instruction at a time over many windows of text: for calibration and measuring.

The same Program as a backend runs, but all tokens go through an instruction before the next one starts, and the caller
computes the linear layers: who quantises a layer sees its input, decides its weights, and passes on what they make of
it. Between instructions the whole state is `buffers` and `at`, which can be kept on disk.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import (
    Activate,
    Add,
    AllGather,
    AllReduce,
    Attend,
    Broadcast,
    DeltaRule,
    Embed,
    Expert,
    Experts,
    Gate,
    Inject,
    Input,
    Instruction,
    Keep,
    LayerNorm,
    Linear,
    LinearHeads,
    MatchMagnitude,
    Merge,
    MixStreams,
    Multiply,
    Pause,
    Pool,
    Program,
    Recurrent,
    RmsNorm,
    Rope,
    Route,
    Scale,
    ScaleRows,
    SelectiveScan,
    SelectRows,
    ShortConvolution,
    Softcap,
    Sparsify,
    StateLayer,
    Value,
)
from tokenworks.kernels.program.recurrent import inputs_of, weights_of
from tokenworks.kernels.reference.backend import COMPUTE
from tokenworks.kernels.reference.elementwise import activation, gated
from tokenworks.kernels.reference.recurrent import advance
from tokenworks.kernels.tensor import Tensor

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Product = Callable[[Linear, Float32], Float32]
"""Output of a linear layer, biases included, from its input [rows, in_features]."""

ROWS_AT_ONCE = 4096
"""Rows that a formula of single rows is computed of at a time: keeps its temporaries small."""


class Forward:
    """One pass over `tokens` [windows, length]; every row's logits are selected. Each window is a sequence."""

    def __init__(self, program: Program, weights: Mapping[str, Tensor], tokens: Int32) -> None:
        self.program = program
        self.tokens = tokens
        self.at = 0
        """The next instruction's number."""
        self.buffers: dict[int, Float32] = {}
        """[rows, width] by number, of those that are still to be read."""
        self._weights = weights
        self._keepers = _keepers(program)
        self._last_use = _last_uses(program)

    @property
    def next(self) -> Instruction | None:
        instructions = self.program.instructions
        return instructions[self.at] if self.at < len(instructions) else None

    def input(self, value: Value) -> Float32:
        return self.buffers[value.buffer][:, value.offset : value.offset + value.width]

    def step(self, product: Product) -> None:
        """Runs the next instruction."""
        instruction = self.next
        assert instruction is not None
        assert not isinstance(instruction, Pause | Keep), "only programs of models that see or hear have these"
        self._store(instruction.output, self._compute(instruction, product))
        for buffer in [number for number, last in self._last_use.items() if last == self.at]:
            self.buffers.pop(buffer, None)
        self.at += 1

    def _store(self, value: Value, rows: Float32) -> None:
        if value.width == value.stride:
            self.buffers[value.buffer] = rows
        elif value.buffer in self.buffers:
            self.buffers[value.buffer][:, value.offset : value.offset + value.width] = rows
        else:
            whole = np.zeros((len(rows), value.stride), np.float32)
            whole[:, value.offset : value.offset + value.width] = rows
            self.buffers[value.buffer] = whole

    def _compute(self, instruction: Instruction, product: Product) -> Float32:
        match instruction:
            case Linear(x=x):
                return product(instruction, self.input(x))
            case Embed():
                return self._embed(instruction)
            case ShortConvolution() | SelectiveScan() | DeltaRule():
                return self._recurrent(instruction)
            case Rope(x=x):
                return self._rope(instruction, self.input(x))
            case Attend():
                return self._attend(instruction)
            case Experts():
                return self._experts(instruction, product)
            case SelectRows(x=x) | Inject(x=x):  # texts have no pictures
                return self.input(x)
            case Pool():
                return self._pool(instruction)
            case Input() | Merge() | Pause() | Keep():
                raise AssertionError("only programs of models that see or hear have these")
            case AllReduce() | AllGather() | Broadcast():
                raise AssertionError("only programs of several ranks have these")
            case (
                RmsNorm()
                | LayerNorm()
                | Gate()
                | Activate()
                | Add()
                | Scale()
                | ScaleRows()
                | Multiply()
                | MixStreams()
                | MatchMagnitude()
                | Sparsify()
                | Route()
                | Softcap()
                | LinearHeads()
            ):
                return self._by_rows(instruction)

    def _by_rows(self, op: Instruction) -> Float32:
        """What the reference computes of each row by itself, in float32 and for a stretch of rows at a time."""
        compute, rows = COMPUTE[type(op)], len(self.input(_reads(op)[0]))
        stretches = [slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE)]
        made = [compute(_Stretch(self, stretch), op) for stretch in stretches]
        return np.asarray(made[0] if len(made) == 1 else np.concatenate(made), np.float32)

    def vector(self, name: str) -> Float32:
        return dequantise(self._weights[name])

    def _embed(self, op: Embed) -> Float32:
        table = dequantise(self._weights[op.table])
        windows, length = self.tokens.shape
        index: dict[str, Int32] = {
            "token": self.tokens.ravel(),
            "known_token": np.where(self.tokens < len(table), self.tokens, 0).ravel(),
            "position": np.tile(np.arange(length, dtype=np.int32), windows),
            "axis": np.zeros(windows * length, np.int32),
            "zero": np.zeros(windows * length, np.int32),
        }
        return np.asarray(table[index[op.index]] * np.float32(op.scale), np.float32)

    def _rope(self, op: Rope, x: Float32) -> Float32:
        windows, length = self.tokens.shape
        angles = np.arange(length, dtype=np.float32)[:, None] * self.vector(op.inverse_frequencies)
        scale = np.float32(op.scale)
        cos, sin = scale * np.cos(angles)[:, None, :], scale * np.sin(angles)[:, None, :]
        heads = x.reshape(windows, length, -1, op.head_size)
        first, second = np.split(heads[..., : op.turned], 2, axis=3)
        turned = (first * cos - second * sin, second * cos + first * sin)
        whole: Float32 = np.concatenate((*turned, heads[..., op.turned :]), axis=3).reshape(x.shape)
        return whole

    def _attend(self, op: Attend) -> Float32:
        windows, length = self.tokens.shape

        def in_heads(value: Value, size: int) -> Float32:
            """[windows, heads, length, a head's columns]"""
            return self.input(value).reshape(windows, length, -1, size).transpose(0, 2, 1, 3)

        kept = _keeper_of(op, self._keepers)
        assert kept.k is not None and kept.v is not None
        q, k, v = in_heads(op.q, op.head_size), in_heads(kept.k, op.head_size), in_heads(kept.v, op.value_size)
        sinks = None if op.sinks is None else self.vector(op.sinks)[:, None, None]
        mask = _mask(length, op.window, causal=op.cache_layer is not None, chunked=op.chunked)
        shared = op.heads // op.kv_heads
        out = np.empty((windows, length, op.heads, op.value_size), np.float32)
        for w in range(windows):
            scores = np.float32(op.scale) * (q[w] @ k[w].repeat(shared, axis=0).transpose(0, 2, 1))
            if op.softcap:
                scores = np.float32(op.softcap) * np.tanh(scores / np.float32(op.softcap))
            scores += mask
            highest = scores.max(axis=2, keepdims=True)
            if sinks is not None:
                highest = np.maximum(highest, sinks)
            np.exp(scores - highest, out=scores)
            scores /= scores.sum(axis=2, keepdims=True) + (0 if sinks is None else np.exp(sinks - highest))
            out[w] = (scores @ v[w].repeat(shared, axis=0)).transpose(1, 0, 2)
        return out.reshape(windows * length, -1)

    def _experts(self, op: Experts, product: Product) -> Float32:
        """Each expert's maps are linear layers of their own, whose rows are the tokens that chose it."""
        x, (chosen, weights) = self.input(op.x), np.split(self.input(op.routes), 2, axis=1)
        out = np.zeros_like(x)
        for expert in op.experts:
            rows, places = np.nonzero(chosen == expert.number)
            inwards, outwards = expert_maps(op, expert)
            made = product(inwards, x[rows])
            if expert.gate is None:
                inner = activation(op.activation, made)
            else:
                inner = gated(op, made[:, : op.inner], made[:, op.inner :])
            out[rows] += weights[rows, places][:, None] * product(outwards, inner)
        return out

    def _recurrent(self, op: Recurrent) -> Float32:
        values = [self.input(value) for value in inputs_of(op)]
        weights = [self.vector(name).astype(np.float64) for name in weights_of(op)]
        layer = self.program.cache_layers[op.cache_layer]
        assert isinstance(layer, StateLayer)
        length = self.tokens.shape[1]
        out = np.empty((len(values[0]), op.output.width), np.float32)
        for start in range(0, len(out), length):
            rows = [value[start : start + length].astype(np.float64) for value in values]
            out[start : start + length] = advance(op, rows, weights, np.zeros(layer.floats))[0]
        return out

    def _pool(self, op: Pool) -> Float32:
        rows = self.input(op.x).reshape(*self.tokens.shape, -1)
        pooled = rows.mean(axis=1) if op.how == "mean" else rows[:, 0]
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True) if op.normalise else pooled


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Some rows of a pass: the operands of the reference's formulas."""

    forward: Forward
    rows: slice

    def load(self, value: Value) -> Float32:
        return self.forward.input(value)[self.rows]

    def weight(self, name: str) -> Float32:
        return self.forward.vector(name)


def plain_product(weights: Mapping[str, Tensor]) -> Product:
    """Linear layers with the weights as they are."""

    def product(linear: Linear, x: Float32) -> Float32:
        return linear_output(x, [dequantise(weights[name]) for name in linear.weights], linear, weights)

    return product


def linear_output(x: Float32, matrices: list[Float32], linear: Linear, weights: Mapping[str, Tensor]) -> Float32:
    """[rows, sum of out_features]: each matrix's part with its bias."""
    out = np.empty((len(x), sum(len(matrix) for matrix in matrices)), np.float32)
    start = 0
    for number, matrix in enumerate(matrices):
        part = out[:, start : start + len(matrix)]
        np.matmul(x, matrix.T, out=part)
        bias = linear.biases[number] if linear.biases else None
        if bias is not None:
            part += dequantise(weights[bias])
        start += len(matrix)
    return out


def expert_maps(op: Experts, expert: Expert) -> tuple[Linear, Linear]:
    """An expert's weights as linear layers: gate and up side by side (or up), and down. Their values are nowhere."""
    names = [expert.up] if expert.gate is None else [expert.gate, expert.up]
    biases = [expert.up_bias] if expert.gate is None else [expert.gate_bias, expert.up_bias]
    inner = Value(-1, 0, len(names) * op.inner, len(names) * op.inner)
    return (
        Linear(inner, op.x, tuple(names), tuple(biases)),
        Linear(op.output, inner, (expert.down,), (expert.down_bias,)),
    )


@cache
def _mask(length: int, window: int, *, causal: bool, chunked: bool) -> Float32:
    """[length, length] to add to scores."""
    distance = np.arange(length)[:, None] - np.arange(length)
    reach = np.arange(length)[:, None] % window + 1 if window and chunked else window or length
    hidden = (distance < 0) & causal | (abs(distance) >= reach)
    return np.where(hidden, np.float32(-np.inf), np.float32(0))


def _keepers(program: Program) -> dict[int, Attend]:
    """By cache layer the instruction that writes K and V there."""
    attends = (op for op in program.instructions if isinstance(op, Attend) and op.k is not None)
    return {op.cache_layer: op for op in attends if op.cache_layer is not None}


def _keeper_of(op: Attend, keepers: Mapping[int, Attend]) -> Attend:
    return op if op.k is not None or op.cache_layer is None else keepers[op.cache_layer]


def _reads(instruction: Instruction) -> list[Value]:
    fields = ((field.name, getattr(instruction, field.name)) for field in dataclasses.fields(instruction))
    return [value for name, value in fields if isinstance(value, Value) and name != "output"]


def _last_uses(program: Program) -> dict[int, int]:
    """Buffer number -> number of the last instruction that reads it; the result is never let go."""
    last: dict[int, int] = {}
    keepers = _keepers(program)
    for number, instruction in enumerate(program.instructions):
        read = _reads(instruction)
        if isinstance(instruction, Attend):
            kept = _keeper_of(instruction, keepers)
            read += [value for value in (kept.k, kept.v) if value is not None]
        last |= dict.fromkeys((value.buffer for value in read), number)
    last.pop(program.result.buffer, None)
    return last
