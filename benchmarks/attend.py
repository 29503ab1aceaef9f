"""Attention of the CPU backend beside what this machine can do at all.

    python benchmarks/attend.py [--threads 2] [--cache float16]

One layer, its cache in use long enough to leave the fast caches. Limits, measured in the same run: for prefill numpy's
float32 product (GFLOP/s; work is counted for positions that are seen), for decode reading memory (GB/s of K and V).
"""

import argparse
import os
from collections.abc import Callable
from typing import get_args

import numpy as np
from linear import best_s, float_limit_flop_per_s, memory_limit_bytes_per_s

from tokenworks.kernels.backend import CacheType, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import KvLayer, ProgramBuilder
from tokenworks.kernels.tensor import Tensor
from tokenworks.kvcache.layout import token_bytes

SHAPES = {"SmolLM2": (9, 3, 64), "Gemma 3": (4, 1, 256)}
"""heads, kv_heads, head_size"""
LAYERS = 30
CONTEXT = 8192
BLOCK_TOKENS = 16


def layers(
    heads: int, kv_heads: int, head_size: int, count: int, cache: CacheType, threads: int
) -> Callable[[StepBatch], object]:
    """Runs `count` attention layers and next to nothing else."""
    builder = ProgramBuilder()
    x = builder.embed("x", (heads + 2 * kv_heads) * head_size)
    q = x.columns(0, heads * head_size)
    k = x.columns(heads * head_size, kv_heads * head_size)
    v = x.columns((heads + kv_heads) * head_size, kv_heads * head_size)
    out = x
    for _ in range(count):
        out = builder.attend(q, k, v, heads=heads, kv_heads=kv_heads, head_size=head_size, scale=head_size**-0.5)
    table = np.random.default_rng(0).standard_normal((64, x.width)).astype(np.float32)
    weights = {"x": Tensor("x", "F32", table.shape, table.reshape(-1).view(np.uint8))}
    limits = Limits(512, 64, 64, 4 * CONTEXT // BLOCK_TOKENS, BLOCK_TOKENS, cache, threads)
    return CpuBackend().compile(builder.finish(out), weights, limits).run


def step(tokens: int, position: int, sequences: int = 1) -> StepBatch:
    columns = CONTEXT // BLOCK_TOKENS
    rows = np.arange(tokens * sequences, dtype=np.int32)
    return StepBatch(
        rows % 64,
        np.tile(np.arange(position, position + tokens, dtype=np.int32), sequences),
        np.arange(0, tokens * sequences + 1, tokens, dtype=np.int32),
        np.arange(sequences * columns, dtype=np.int32).reshape(sequences, columns) % (4 * columns),
        rows[:1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", choices=get_args(CacheType), default="int8")
    options = parser.parse_args()
    threads, cache = options.threads, options.cache
    memory, floats = memory_limit_bytes_per_s(threads), float_limit_flop_per_s()
    isa = CpuBackend().isa
    print(f"{isa}, {threads} threads; limits: {memory / 1e9:.1f} GB/s, {floats / 1e9:.0f} GFLOP/s float32")
    names = ("ms a layer", 11), ("GFLOP/s", 8), ("share", 6), ("GB/s", 6), ("share", 6)
    print(f"{'model':8} {'tokens':>6} {'after':>6} {'seqs':>5}", *(f"{name:>{width}}" for name, width in names))
    for name, (heads, kv_heads, head_size) in SHAPES.items():
        run = layers(heads, kv_heads, head_size, LAYERS, cache, threads)
        for tokens, position, sequences in (
            (512, 0, 1), (512, 2048, 1), (16, 2048, 1),
            (1, 128, 1), (1, 1024, 1), (1, 8000, 1), (1, 1024, 16), (1, 200, 64),
        ):  # fmt: skip
            batch = step(tokens, position, sequences)
            seconds = best_s(lambda run=run, batch=batch: run(batch)) / LAYERS
            seen = sequences * tokens * (position + (tokens + 1) / 2)
            flops = seen * heads * head_size * 4 / seconds
            size = sequences * (position + tokens) * token_bytes([KvLayer(kv_heads, head_size, 0)], cache) / seconds
            print(
                f"{name:8} {tokens:6} {position:6} {sequences:5} {seconds * 1e3:11.3f} {flops / 1e9:8.1f} "
                f"{flops / floats:6.0%} {size / 1e9:6.1f} {size / memory:6.0%}"
            )


if __name__ == "__main__":
    main()
