"""The slow, obvious backend: the living definition of every operation, and the oracle of every other backend.

Values between instructions are float32, as the program says; inside an instruction everything is computed in
float64, so that what a fast backend is held against has no rounding worth mentioning of its own. K and V are rounded
to the cache's dtype when they are written; a cache of int8 also means queries of 8 bits (see kernels/cpu/attend).
Weights are blown up to float32: this backend is for tests.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.adapter import Adaptation, check_adaptation
from tokenworks.kernels.backend import Float32, Int32, Limits, PackedPlace, SampleBatch, StepBatch
from tokenworks.kernels.check import check_operations, look_up, needs
from tokenworks.kernels.formats import dequantise
from tokenworks.kernels.program import (
    Activate,
    Activation,
    Add,
    Attend,
    DeltaRule,
    Embed,
    Experts,
    Gate,
    Inject,
    Input,
    KvLayer,
    LayerNorm,
    Linear,
    LinearHeads,
    Merge,
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
    Value,
)
from tokenworks.kernels.recurrence import advance
from tokenworks.kernels.recurrent import inputs_of, weights_of
from tokenworks.kernels.tensor import Tensor

Float64 = npt.NDArray[np.float64]

LEAST_SCALE = 2.0**-24
"""Heads whose codes would be worth no more than this are written as zeros."""

LEAST_SUM = 1e-20
"""Added to a sum of routing weights before they are divided by it."""

LINEAR_SLAB = 4096
"""Output features of a linear layer that are widened to float64 at a time, so that a large head needs little memory."""


class ReferenceBackend:
    """Runs any program, in numpy."""

    name = "reference"

    def compile(
        self, program: Program, weights: Mapping[str, Tensor], limits: Limits, place: PackedPlace | None = None
    ) -> "ReferenceExecutable":
        numbers = {name: dequantise(look_up(weights, name, wanted)) for name, wanted in needs(program).items()}
        check_operations(program, {name: array.shape for name, array in numbers.items()})
        return ReferenceExecutable(program, numbers, limits)


class ReferenceExecutable:
    """A model and its cache: K and V of a layer are [blocks, block_tokens, kv_heads, head_size], states
    [state_slots, floats]; by number of the cache layer."""

    def __init__(self, program: Program, weights: Mapping[str, Float32], limits: Limits) -> None:
        self._program = program
        self._weights = weights
        self._caches: dict[int, tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]] = {}
        self._states: dict[int, Float32] = {}
        for number, layer in enumerate(program.cache_layers):
            if isinstance(layer, KvLayer):
                shape = (limits.blocks, limits.block_tokens, layer.kv_heads, layer.head_size)
                in_bytes_as = np.float16 if layer.latent else np.float32
                dtype = in_bytes_as if limits.cache_dtype == "int8" else np.dtype(limits.cache_dtype)
                keys = np.zeros(shape, dtype)
                # A latent layer's values are a view of its keys.
                self._caches[number] = (keys, keys[..., -layer.latent :] if layer.latent else np.zeros(shape, dtype))
            else:
                self._states[number] = np.zeros((limits.state_slots, layer.floats), np.float32)
        self._rounded = limits.cache_dtype == "int8"
        self._uses = {op: np.zeros(op.count, np.int64) for op in program.instructions if isinstance(op, Experts)}
        pauses = [at for at, each in enumerate(program.instructions) if isinstance(each, Pause)]
        self._parts = list(zip([0, *pauses], [*pauses, len(program.instructions)], strict=True))
        self._buffers: dict[int, Float32] = {}
        self._adapters: dict[int, _Adapter] = {}
        self.parts = len(self._parts)
        self.from_packed_file = False
        self.weight_bytes = sum(weight.nbytes for weight in weights.values())
        self.cache_bytes = sum(
            keys.nbytes + (values.nbytes if values.base is None else 0) for keys, values in self._caches.values()
        )
        self.cache_bytes += sum(states.nbytes for states in self._states.values())

    def keep_packed(self) -> None:
        """It packs nothing."""

    def run(self, batch: StepBatch, part: int | None = None) -> Float32:
        if not part:
            self._buffers = {}
        step = _Step(batch, self._weights, self._caches, self._states, self._rounded, self._buffers, self._adapters)
        begin, end = self._parts[part] if part is not None else (0, len(self._program.instructions))
        for instruction in self._program.instructions[begin:end]:
            if isinstance(instruction, Experts):
                chosen, _ = np.split(step.load(instruction.routes).astype(np.int64), 2, axis=1)
                self._uses[instruction] += np.bincount(chosen.ravel(), minlength=instruction.count)
            if not isinstance(instruction, Pause):
                compute = _COMPUTE[type(instruction)]
                step.store(instruction.output, compute(step, instruction))
        if part is not None and part < self.parts - 1:
            return np.empty((0, self._program.result.width), np.float32)
        result = np.ascontiguousarray(self._buffers[self._program.result.buffer][:, _columns(self._program.result)])
        self.finite = bool(np.isfinite(result).all())
        return result

    def expert_reads(self) -> tuple[int, int]:
        return 0, 0

    def load_adapter(self, slot: int, adaptation: Adaptation) -> None:
        check_adaptation(self._program, {name: weight.shape for name, weight in self._weights.items()}, adaptation)
        self._adapters[slot] = {
            name: (dequantise(share.down).astype(np.float64), share.scale * dequantise(share.up).astype(np.float64))
            for name, share in adaptation.items()
        }

    def drop_adapter(self, slot: int) -> None:
        self._adapters.pop(slot, None)

    @property
    def adapter_bytes(self) -> int:
        return sum(side.nbytes for maps in self._adapters.values() for sides in maps.values() for side in sides)

    def expert_uses(self) -> list[list[int]]:
        return [counts.tolist() for counts in self._uses.values()]

    def sample(self, logits: Float32, how: SampleBatch) -> Int32:
        chosen = [
            sample_row(
                row, float(how.temperature[r]), int(how.top_k[r]), float(how.top_p[r]), float(how.min_p[r]),
                float(how.uniform[r]),
            )
            for r, row in enumerate(logits)
        ]  # fmt: skip
        return np.array(chosen, np.int32)

    def logprobs(self, logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
        rows = logits.astype(np.float64)
        values = rows - _log_sum_exp(rows)
        order = np.argsort(-rows, axis=1, kind="stable")
        of_chosen = np.take_along_axis(values, chosen[:, None].astype(np.int64), axis=1)[:, 0]
        ranks = (order == chosen[:, None]).argmax(axis=1) + 1
        best = order[:, :top]
        return (
            of_chosen.astype(np.float32),
            ranks.astype(np.int32),
            best.astype(np.int32),
            np.take_along_axis(values, best, axis=1).astype(np.float32),
        )


def sample_row(logits: Float32, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """The token that SampleBatch defines for one row. top_p reads the probabilities after top_k, renormalised."""
    order = np.argsort(-logits, kind="stable")
    if temperature == 0.0:
        return int(order[0])
    ordered = logits[order].astype(np.float64)
    if top_k > 0:
        ordered = ordered[:top_k]
    weights = np.exp((ordered - ordered[0]) / temperature)
    if top_p < 1.0:
        reached = np.cumsum(weights) >= top_p * weights.sum()
        weights = weights[: int(reached.argmax()) + 1]
    weights = weights[weights >= min_p * weights[0]]
    weights = weights[weights > 0.0]
    passed = np.cumsum(weights) > uniform * weights.sum()
    return int(order[int(passed.argmax()) if passed.any() else len(weights) - 1])


_Adapter = Mapping[str, tuple[Float64, Float64]]
"""By the weight's name: [rank, in_features], and [out_features, rank] times the scale."""


@dataclass(slots=True)
class _Step:
    """What the operations of one step read and write; buffers are [rows, stride] float32, made when first written."""

    batch: StepBatch
    weights: Mapping[str, Float32]
    caches: Mapping[int, tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]
    states: Mapping[int, Float32]
    cache_in_bytes: bool
    buffers: dict[int, Float32]
    adapters: Mapping[int, _Adapter]

    def load(self, value: Value) -> Float64:
        return self.buffers[value.buffer][:, _columns(value)].astype(np.float64)

    def store(self, value: Value, rows: Float64) -> None:
        if value.buffer not in self.buffers:
            self.buffers[value.buffer] = np.zeros((len(rows), value.stride), np.float32)
        self.buffers[value.buffer][:, _columns(value)] = rows

    def weight(self, name: str) -> Float64:
        return self.weights[name].astype(np.float64)

    def adapted_rows(self, rows: int) -> list[tuple[_Adapter, npt.NDArray[np.int64]]]:
        """The step's adapters, each with the rows that it changes, of `rows`: all tokens' or the selected ones."""
        batch = self.batch
        if batch.adapters is None:
            return []
        slots = np.repeat(batch.adapters, np.diff(batch.row_starts))
        if rows != len(slots):
            slots = slots[batch.logit_rows]
        return [(self.adapters[slot], np.nonzero(slots == slot)[0]) for slot in np.unique(slots[slots >= 0]).tolist()]


def _columns(value: Value) -> slice:
    return slice(value.offset, value.offset + value.width)


def _log_sum_exp(rows: Float64) -> Float64:
    largest = rows.max(axis=1, keepdims=True)
    return np.asarray(largest + np.log(np.exp(rows - largest).sum(axis=1, keepdims=True)), np.float64)


def _input(step: _Step, op: Input) -> Float64:
    assert step.batch.inputs is not None, "this program takes inputs"
    return step.batch.inputs.astype(np.float64)


def _inject(step: _Step, op: Inject) -> Float64:
    x = step.load(op.x)
    rows, features = step.batch.feature_rows, step.batch.features
    if rows is not None and features is not None:
        given = features[:, op.offset : op.offset + op.x.width]
        x[rows] = given if op.how == "replace" else x[rows] + given
    return x


def _merge(step: _Step, op: Merge) -> Float64:
    groups = step.load(op.x).reshape(-1, op.count, op.x.width)
    return groups.reshape(len(groups), -1) if op.how == "concatenate" else np.asarray(groups.mean(axis=1))


def _embed(step: _Step, op: Embed) -> Float64:
    batch = step.batch
    nowhere = np.zeros_like(batch.tokens)
    axis = nowhere if batch.axes is None else batch.axes[0]
    index = {"token": batch.tokens, "position": batch.positions, "axis": axis, "zero": nowhere}[op.index]
    return np.asarray(step.weights[op.table][index].astype(np.float64) * op.scale, np.float64)


def _rmsnorm(step: _Step, op: RmsNorm) -> Float64:
    x = step.load(op.x)
    groups = x.reshape(len(x), op.x.width // op.group, op.group)
    weight = step.weight(op.weight).reshape(-1, op.group)
    scaled = groups / np.sqrt((groups**2).mean(axis=2, keepdims=True) + op.epsilon) * weight
    return np.asarray(scaled.reshape(x.shape), np.float64)


def _layernorm(step: _Step, op: LayerNorm) -> Float64:
    x = step.load(op.x)
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + op.epsilon)
    shift = 0.0 if op.bias is None else step.weight(op.bias)
    return np.asarray(scaled * step.weight(op.weight) + shift, np.float64)


def _linear(step: _Step, op: Linear) -> Float64:
    x = step.load(op.x)
    biases = op.biases or (None,) * len(op.weights)
    parts: list[Float64] = []
    for name, bias in zip(op.weights, biases, strict=True):
        weight = step.weights[name]
        slabs = [x @ weight[at : at + LINEAR_SLAB].T.astype(np.float64) for at in range(0, len(weight), LINEAR_SLAB)]
        product = np.concatenate(slabs, axis=1)
        for adapter, rows in step.adapted_rows(len(x)):
            if name in adapter:
                down, up = adapter[name]
                product[rows] += x[rows] @ down.T @ up.T
        parts.append(product if bias is None else product + step.weight(bias))
    return np.concatenate(parts, axis=1)


def _linear_heads(step: _Step, op: LinearHeads) -> Float64:
    x = step.load(op.x)
    heads = x.reshape(len(x), len(op.weights), op.kept + op.inputs)
    made = np.stack([heads[:, h, op.kept :] @ step.weight(name).T for h, name in enumerate(op.weights)], axis=1)
    return np.concatenate((heads[..., : op.kept], made), axis=2).reshape(len(x), op.output.width)


def _rope(step: _Step, op: Rope) -> Float64:
    x = step.load(op.x)
    heads = x.reshape(len(x), op.x.width // op.head_size, op.head_size)
    first, second = np.split(heads[..., : op.turned], 2, axis=2)
    places = step.batch.positions[:, None]
    if op.axes and step.batch.axes is not None:
        places = step.batch.axes[list(op.axes)].T
    angles = places[:, None, :].astype(np.float64) * step.weight(op.inverse_frequencies)
    cos, sin = op.scale * np.cos(angles), op.scale * np.sin(angles)
    turned = (first * cos - second * sin, second * cos + first * sin)
    rotated = np.concatenate([*turned, heads[..., op.turned :]], axis=2)
    return np.asarray(rotated.reshape(x.shape), np.float64)


def _attend(step: _Step, op: Attend) -> Float64:
    tokens = len(step.batch.tokens)
    sinks = None if op.sinks is None else step.weight(op.sinks)
    q = step.load(op.q).reshape(tokens, op.heads, op.head_size)
    k = step.load(op.k).reshape(tokens, op.kv_heads, op.head_size)
    v = step.load(op.v).reshape(tokens, op.kv_heads, op.value_size)
    if op.cache_layer is not None and step.cache_in_bytes and not op.latent:
        q, k, v = in_bytes(rotated(q)) / (op.head_size & -op.head_size), in_bytes(rotated(k)), in_bytes(v)
    number, count = op.portion
    shape = (tokens, op.heads, op.value_size)
    out = step.load(op.output).reshape(shape) if number else np.zeros(shape)
    for s, (start, stop) in enumerate(_sequences(step.batch, op.windows)):
        if op.cache_layer is None:
            rows = stop - start
            for row in range(start + rows * number // count, start + rows * (number + 1) // count):
                reach = op.window or stop - start
                near = slice(max(start, row - reach + 1), min(stop, row + reach))
                out[row] = _attend_one(op, q[row], k[near], v[near], sinks)
            continue
        keys, values = step.caches[op.cache_layer]
        block_tokens = keys.shape[1]
        table = step.batch.block_tables[s]
        positions = step.batch.positions[start:stop]
        blocks = table[positions // block_tokens]
        keys[blocks, positions % block_tokens] = k[start:stop]
        values[blocks, positions % block_tokens] = v[start:stop]
        for row in range(start, stop):
            position = int(step.batch.positions[row])
            first = max(0, position - op.window + 1) if op.window else 0
            seen = np.arange(first, position + 1 if step.batch.ends is None else step.batch.ends[row])
            where = (table[seen // block_tokens], seen % block_tokens)
            seen_k, seen_v = keys[where].astype(np.float64), values[where].astype(np.float64)
            out[row] = _attend_one(op, q[row], seen_k, seen_v, sinks)
    return np.asarray(out.reshape(tokens, -1), np.float64)


def rotated(x: Float64) -> Float64:
    """The Walsh-Hadamard transform, not normalised, of each run of 2^n elements of x [..., head_size], n as large as
    divides the head: q·k grows by 2^n. In float32, as it decides how codes are rounded."""
    head_size = x.shape[-1]
    out, h = x.astype(np.float32), 1
    while h < head_size & -head_size:
        first, second = np.moveaxis(out.reshape(*x.shape[:-1], -1, 2, h), -2, 0)
        out, h = np.stack([first + second, first - second], axis=-2).reshape(x.shape), 2 * h
    return out.astype(np.float64)


def in_bytes(x: Float64) -> Float64:
    """x [..., head_size] with each head rounded to codes -127..127 times a scale."""
    values = x.astype(np.float32)
    largest = np.abs(values).max(axis=-1, keepdims=True)
    scale = largest / np.float32(127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=scale > LEAST_SCALE)
    return np.asarray(np.rint(values * inverse).astype(np.float64) * scale, np.float64)


def _attend_one(op: Attend, q: Float64, k: Float64, v: Float64, sinks: Float64 | None) -> Float64:
    """One token's q [heads, head_size] over the n positions it sees: k and v [n, kv_heads, head_size]."""
    shared = op.heads // op.kv_heads
    scores = op.scale * np.einsum("hd,nhd->hn", q, k.repeat(shared, axis=1))
    if op.softcap:
        scores = op.softcap * np.tanh(scores / op.softcap)
    whole = scores if sinks is None else np.concatenate([scores, sinks[:, None]], axis=1)
    weights = np.exp(scores - _log_sum_exp(whole))
    return np.asarray(np.einsum("hn,nhd->hd", weights, v.repeat(shared, axis=1)), np.float64)


def _sequences(batch: StepBatch, windows: bool = False) -> list[tuple[int, int]]:
    starts = batch.window_starts if windows else batch.row_starts
    assert starts is not None, "this program has windows"
    return list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True))


_erf = np.vectorize(math.erf, otypes=[np.float64])


def activation(kind: Activation, x: Float64) -> Float64:
    """silu and the exact gelu of arXiv 1702.03118 and 1606.08415, and the latter's approximation through tanh."""
    match kind:
        case "silu":
            return np.asarray(x * (0.5 + 0.5 * np.tanh(0.5 * x)), np.float64)
        case "gelu_tanh":
            return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))), np.float64)
        case "gelu":
            return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))), np.float64)
        case "relu2":  # arXiv 2109.08668
            return np.maximum(x, 0.0) ** 2
        case "gelu_quick":
            return x * sigmoid(1.702 * x)
        case "sigmoid":
            return sigmoid(x)


def sigmoid(x: Float64) -> Float64:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, 1.0) / (1.0 + e), np.float64)


def _recurrent(step: _Step, op: Recurrent) -> Float64:
    batch, states = step.batch, step.batch.states
    assert states is not None, "a program with recurrent layers needs StepBatch.states"
    values = [step.load(value) for value in inputs_of(op)]
    weights = [step.weight(name) for name in weights_of(op)]
    kept = step.states[op.cache_layer].astype(np.float64)  # a copy: what is read is as it was before the step
    writings = iter(zip(states.rows.tolist(), states.slots.tolist(), strict=True))
    outputs: list[Float64] = []
    for (start, stop), begin in zip(_sequences(batch), states.begin.tolist(), strict=True):
        state = kept[begin] if begin >= 0 else np.zeros(kept.shape[1])
        while start < stop:
            row, slot = next(writings)
            made, state = advance(op, [value[start : row + 1] for value in values], weights, state)
            outputs.append(made)
            step.states[op.cache_layer][slot] = state
            start = row + 1
    return np.concatenate(outputs)


def _gate(step: _Step, op: Gate) -> Float64:
    return _gated(op, step.load(op.gate), step.load(op.up))


def _gated(op: Gate | Experts, gate: Float64, up: Float64) -> Float64:
    if op.limit:
        gate, up = np.minimum(gate, op.limit), np.clip(up, -op.limit, op.limit)
    return activation(op.activation, gate) * (up + op.offset)


def _activate(step: _Step, op: Activate) -> Float64:
    return activation(op.activation, step.load(op.x))


def _add(step: _Step, op: Add) -> Float64:
    return step.load(op.a) + step.load(op.b)


def _scale(step: _Step, op: Scale) -> Float64:
    return step.load(op.x) * op.factor


def _scale_rows(step: _Step, op: ScaleRows) -> Float64:
    return step.load(op.x) * step.load(op.by)


def _route(step: _Step, op: Route) -> Float64:
    logits = step.load(op.x)
    scores = sigmoid(logits) if op.score == "sigmoid" else np.exp(logits - _log_sum_exp(logits))
    chosen = choose_experts(op, scores if op.bias is None else scores + step.weight(op.bias))
    weights = np.take_along_axis(scores, chosen, axis=1)
    if op.normalise:
        weights = weights / (weights.sum(axis=1, keepdims=True) + LEAST_SUM)
    return np.concatenate([chosen.astype(np.float64), weights * op.scale], axis=1)


def choose_experts(op: Route, worth: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[T, top_k] numbers of the experts of most worth, best first; `worth` [T, experts] are scores + biases."""
    grouped = worth.reshape(len(worth), op.groups, worth.shape[1] // op.groups).copy()
    of_groups = np.sort(grouped, axis=2)[:, :, -op.group_best :].sum(axis=2)
    dropped = np.argsort(-of_groups, axis=1, kind="stable")[:, op.kept_groups :]
    np.put_along_axis(grouped, dropped[:, :, None], -np.inf, axis=1)
    return np.argsort(-grouped.reshape(worth.shape), axis=1, kind="stable")[:, : op.top_k]


def _experts(step: _Step, op: Experts) -> Float64:
    x, routes = step.load(op.x), step.load(op.routes)
    chosen, weights = np.split(routes, 2, axis=1)
    out = np.zeros((len(x), op.output.width))
    for expert in op.experts:
        rows, places = np.nonzero(chosen == expert.number)
        if not len(rows):
            continue
        up = _expert_map(step, x[rows], expert.up, expert.up_bias)
        if expert.gate is None:
            inner = activation(op.activation, up)
        else:
            inner = _gated(op, _expert_map(step, x[rows], expert.gate, expert.gate_bias), up)
        made = _expert_map(step, inner, expert.down, expert.down_bias)
        out[rows] += weights[rows, places][:, None] * made
    return out


def _expert_map(step: _Step, x: Float64, weight: str, bias: str | None) -> Float64:
    product = np.asarray(x @ step.weights[weight].T.astype(np.float64), np.float64)
    return product if bias is None else product + step.weight(bias)


def _softcap(step: _Step, op: Softcap) -> Float64:
    return np.asarray(op.cap * np.tanh(step.load(op.x) / op.cap), np.float64)


def _select_rows(step: _Step, op: SelectRows) -> Float64:
    return step.load(op.x)[step.batch.logit_rows]


def _pool(step: _Step, op: Pool) -> Float64:
    x = step.load(op.x)
    pooled = [x[start:stop].mean(axis=0) if op.how == "mean" else x[start] for start, stop in _sequences(step.batch)]
    rows = np.stack(pooled)
    if op.normalise:
        rows = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.asarray(rows, np.float64)


# Each entry takes the instruction type it is filed under, which a dict's type cannot say.
_COMPUTE: dict[type, Callable[..., Float64]] = {
    Input: _input,
    Inject: _inject,
    Merge: _merge,
    Embed: _embed,
    RmsNorm: _rmsnorm,
    LayerNorm: _layernorm,
    Linear: _linear,
    LinearHeads: _linear_heads,
    Rope: _rope,
    Attend: _attend,
    ShortConvolution: _recurrent,
    SelectiveScan: _recurrent,
    DeltaRule: _recurrent,
    Gate: _gate,
    Activate: _activate,
    Add: _add,
    Scale: _scale,
    ScaleRows: _scale_rows,
    Route: _route,
    Experts: _experts,
    Softcap: _softcap,
    SelectRows: _select_rows,
    Pool: _pool,
}
