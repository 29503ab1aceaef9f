"""A small model of stacked, gated and selected products, its weights in several formats, and adapters for it."""

from collections.abc import Sequence
from dataclasses import replace

import gguf
import numpy as np
from kernel_support import limits, program_of, step

from tokenworks.kernels.adapter import LowRank
from tokenworks.kernels.backend import Backend, Executable, StepBatch
from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.kernels.tensor import Tensor

WIDTH, INNER, TOKENS = 64, 96, 40
SHAPES = {"a": (32, WIDTH), "b": (WIDTH, WIDTH), "gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
SHAPES |= {"head": (TOKENS, WIDTH)}
FORMS = {
    "bf16": dict.fromkeys(SHAPES, "BF16"),
    "packed": dict.fromkeys(SHAPES, "Q8_0"),
    "mixed": {"a": "Q8_0", "b": "Q4_0", "gate": "Q8_0", "up": "Q4_0", "down": "Q8_0", "head": "BF16"},
}
RANKS = {0: 3, 1: 40, 3: 16}
"""Of the adapters, by slot."""
MIXED = [([1, 2, 3], 1), ([4], -1), ([5, 6, 7, 8, 9], 3), ([12], 0), ([13, 14], 1), ([15], -1)]
"""Sequences: tokens, and the slot."""


def body(b: ProgramBuilder, x: Value) -> Value:
    stacked = b.linear(x, ["a", "b"], 32 + WIDTH)
    x = b.add(x, b.gate(stacked.columns(32, WIDTH), stacked.columns(0, WIDTH), "none"))
    both = b.linear(x, ["gate", "up"], 2 * INNER)
    x = b.add(x, b.linear(b.gate(both.columns(0, INNER), both.columns(INNER, INNER), "silu"), ["down"], WIDTH))
    return b.linear(b.select_rows(x), ["head"], TOKENS)


def numbers(name: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng([ord(letter) for letter in name])
    return (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)


def tensor(name: str, form: str, array: np.ndarray) -> Tensor:
    if form == "F32":
        return Tensor(name, form, array.shape, array.reshape(-1).view(np.uint8))
    data = gguf.quants.quantize(array, gguf.GGMLQuantizationType[form])
    return Tensor(name, form, array.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8))


def adaptation(slot: int, names: Sequence[str] = tuple(SHAPES)) -> dict[str, LowRank]:
    return {
        name: LowRank(
            tensor("A", "BF16", numbers(f"{name}A{slot}", RANKS[slot], SHAPES[name][1])),
            tensor("B", "BF16", numbers(f"{name}B{slot}", SHAPES[name][0], RANKS[slot])),
            0.7,
        )
        for name in names
    }


def model(backend: Backend, forms: str, slots: Sequence[int] = tuple(RANKS)) -> Executable:
    weights = {name: tensor(name, FORMS[forms][name], numbers(name, *shape)) for name, shape in SHAPES.items()}
    weights["x"] = tensor("x", "F32", 8 * numbers("x", TOKENS, WIDTH))
    sizes = limits(step_tokens=20, logit_rows=20, sequences=8, blocks=1, cache_dtype="bfloat16")
    made = backend.compile(program_of(WIDTH, body), weights, sizes)
    for slot in slots:
        made.load_adapter(slot, adaptation(slot, ["a", "gate", "down"] if slot == 3 else tuple(SHAPES)))
    return made


def batch_of(parts: Sequence[tuple[Sequence[int], int]]) -> StepBatch:
    """Of each sequence the last row is wanted, and every second."""
    batch = step([(tokens, 0) for tokens, _ in parts])
    rows = sorted({*range(0, len(batch.tokens), 2), *(batch.row_starts[1:] - 1).tolist()})
    slots = np.array([slot for _, slot in parts], np.int32)
    return replace(batch, adapters=None if (slots < 0).all() else slots, logit_rows=np.array(rows, np.int32))


def run(executable: Executable, parts: Sequence[tuple[Sequence[int], int]]) -> np.ndarray:
    return np.asarray(executable.run(batch_of(parts))).copy()
