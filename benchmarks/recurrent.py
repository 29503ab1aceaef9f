"""Recurrent layers of the CPU backend beside what this machine can do at all.

    python benchmarks/recurrent.py [--threads 2]

Layers of published models' shapes, without their linear maps, over enough of them to leave the caches. Tokens go one
after the other, so that a state has the same bits however a prompt is cut; what that costs shows as the share of
numpy's float32 product, in the operations that the recurrence itself has (6 a number of the state and token for
Mamba-2, 8 for the delta rule). For one token of each sequence the limit is memory: each state is read and written.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

import numpy as np
from linear import best_s, float_limit_flop_per_s, memory_limit_bytes_per_s

from tokenworks.kernels.backend import Limits, StateBatch, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import ProgramBuilder, Value
from tokenworks.kernels.tensor import Tensor

LAYERS = 8
Layer = Callable[[ProgramBuilder, Value], Value]


def mamba2(b: ProgramBuilder, x: Value, *, heads: int, size: int, groups: int, state: int) -> Value:
    inner, shared = heads * size, groups * state
    xbc = b.short_convolution(x.columns(0, inner + 2 * shared), "conv", None, 4)
    return b.selective_scan(
        xbc.columns(0, inner), xbc.columns(inner, shared), xbc.columns(inner + shared, shared),
        x.columns(inner + 2 * shared, heads), decay="decay", step_bias="step_bias", skip="skip", heads=heads,
        groups=groups, step_range=(0.0, float("inf")),
    )  # fmt: skip


def delta(b: ProgramBuilder, x: Value, *, heads: int, key_heads: int, size: int) -> Value:
    keys, values = key_heads * size, heads * size
    qkv = b.short_convolution(x.columns(0, 2 * keys + values), "conv", None, 4)
    return b.delta_rule(
        qkv.columns(0, keys), qkv.columns(keys, keys), qkv.columns(2 * keys, values),
        x.columns(2 * keys + values, heads), x.columns(2 * keys + values + heads, heads), decay="decay",
        step_bias="step_bias", heads=heads, key_heads=key_heads,
    )  # fmt: skip


# name: layer, heads, width of the convolution, numbers of a state, operations on each for a token
SHAPES: dict[str, tuple[Layer, int, int, int, int]] = {
    "Nemotron 3 Nano": (partial(mamba2, heads=64, size=64, groups=8, state=128), 64, 6144, 64 * 64 * 128, 6),
    "Qwen3-Next": (partial(delta, heads=32, key_heads=16, size=128), 32, 8192, 32 * 128 * 128, 8),
}


def runs(layer: Layer, heads: int, convolved: int, threads: int) -> Callable[[StepBatch], object]:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((64, convolved + 2 * heads)), "conv": rng.standard_normal((convolved, 4)),
        "decay": -rng.uniform(1, 16, heads), "step_bias": rng.uniform(-6, -2, heads), "skip": np.ones(heads),
    }  # fmt: skip
    builder = ProgramBuilder()
    x = out = builder.embed("x", convolved + 2 * heads)
    for _ in range(LAYERS):
        out = layer(builder, x)
    weights = {}
    for name, values in arrays.items():
        data = values.astype(np.float32).reshape(-1).view(np.uint8)
        weights[name] = Tensor(name, "F32", values.shape, data)
    limits = Limits(512, 16, 1, 1, 16, "int8", threads, state_slots=16)
    return CpuBackend().compile(builder.finish(builder.select_rows(out)), weights, limits).run


def step(tokens: int, sequences: int) -> StepBatch:
    rows = np.arange(tokens * sequences, dtype=np.int32)
    slots = np.arange(sequences, dtype=np.int32)
    starts = np.arange(0, tokens * sequences + 1, tokens, dtype=np.int32)
    states = StateBatch(slots, starts[1:] - np.int32(1), slots)
    positions = np.tile(np.arange(9, 9 + tokens, dtype=np.int32), sequences)
    return StepBatch(rows % 64, positions, starts, np.zeros((sequences, 0), np.int32), rows[:1], states=states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    threads = parser.parse_args().threads
    memory, floats = memory_limit_bytes_per_s(threads), float_limit_flop_per_s()
    print(f"{CpuBackend().isa}, {threads} threads; limits: {memory / 1e9:.1f} GB/s, {floats / 1e9:.0f} GFLOP/s float32")
    names = ("ms a layer", 11), ("tokens/s", 9), ("GFLOP/s", 8), ("share", 6), ("GB/s", 6), ("share", 6)
    print(f"{'shape':16} {'tokens':>6} {'seqs':>5}", *(f"{name:>{width}}" for name, width in names))
    for name, (layer, heads, convolved, numbers, operations) in SHAPES.items():
        run = runs(layer, heads, convolved, threads)
        for tokens, sequences in ((512, 1), (16, 1), (1, 1), (1, 16)):
            batch = step(tokens, sequences)
            run(batch)
            seconds = best_s(lambda run=run, batch=batch: run(batch)) / LAYERS
            flops = tokens * sequences * numbers * operations / seconds
            size = sequences * 2 * 4 * numbers / seconds
            print(
                f"{name:16} {tokens:6} {sequences:5} {seconds * 1e3:11.3f} {tokens * sequences / seconds:9.0f} "
                f"{flops / 1e9:8.1f} {flops / floats:6.0%} {size / 1e9:6.1f} {size / memory:6.0%}"
            )


if __name__ == "__main__":
    main()
