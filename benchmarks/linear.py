"""Linear products of the CPU backend beside what this machine can do at all.

    python benchmarks/linear.py [--formats Q4_1,Q8_0] [--rows 1,4,16,64,512] [--threads 2]

Shapes are SmolLM2-135M's. Each is run over enough copies of the weight to leave the caches, as in a model. Limits,
measured in the same run: reading memory with every thread (GB/s), and numpy's float32 product (GFLOP/s); the integer
units do four times as many multiply-adds per instruction, so a quantised product's limit is taken as four times that.
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tokenworks.kernels.backend import Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.program import ProgramBuilder
from tokenworks.kernels.tensor import Tensor

SHAPES = {"qkv": (960, 576), "o": (576, 576), "gate,up": (3072, 576), "down": (576, 1536), "head": (49152, 576)}
TOTAL_BYTES = 128 * 1024 * 1024


def best_s(work, at_least_s: float = 0.5) -> float:
    best, until = float("inf"), time.perf_counter() + at_least_s
    while time.perf_counter() < until:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def memory_limit_bytes_per_s(threads: int) -> float:
    parts = [np.ones(TOTAL_BYTES // 8, np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return threads * TOTAL_BYTES / best_s(lambda: list(pool.map(np.max, parts)))


def float_limit_flop_per_s(size: int = 2048) -> float:
    a = np.ones((size, size), np.float32)
    return 2 * size**3 / best_s(lambda: a @ a)


def product_s(format_name: str, out_features: int, in_features: int, rows: int, threads: int) -> tuple[float, float]:
    """Seconds of one product, and the bytes of its packed weight."""
    form = FORMATS[format_name]
    size = out_features * in_features // form.block_elements * form.block_bytes
    copies = max(1, TOTAL_BYTES // size)
    data = np.zeros(size, np.uint8)
    table = np.random.default_rng(0).standard_normal((64, in_features)).astype(np.float32)
    weights = {"x": Tensor("x", "F32", table.shape, table.reshape(-1).view(np.uint8))}
    builder = ProgramBuilder()
    x = out = builder.embed("x", in_features)
    for name in map(str, range(copies)):
        weights[name] = Tensor(name, format_name, (out_features, in_features), data)
        out = builder.linear(x, [name], out_features)
    limits = Limits(rows, 1, 1, 1, 16, "float16", threads)
    executable = CpuBackend().compile(builder.finish(out), weights, limits)
    numbers = np.arange(rows, dtype=np.int32)
    starts, tables = np.array([0, rows], np.int32), np.zeros((1, 0), np.int32)
    batch = StepBatch(numbers % 64, numbers, starts, tables, numbers[:1])
    seconds = best_s(lambda: executable.run(batch)) / copies
    return seconds, (executable.weight_bytes - table.nbytes) / copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="Q4_1,Q8_0")
    parser.add_argument("--shapes", default=";".join(SHAPES))
    parser.add_argument("--rows", default="1,4,16,64,512")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    memory, floats = memory_limit_bytes_per_s(options.threads), float_limit_flop_per_s()
    limits = f"{memory / 1e9:.1f} GB/s, {floats / 1e9:.0f} GFLOP/s float32"
    print(f"{CpuBackend().isa}, {options.threads} threads; limits: {limits}")
    print(f"{'format':7} {'shape':8} {'rows':>5} {'µs':>9} {'GB/s':>6} {'share':>6} {'GOP/s':>7} {'share':>6}")
    for format_name in options.formats.split(","):
        peak = floats if format_name in ("F32", "F16", "BF16", "F8_E4M3") else 4 * floats
        for shape in options.shapes.split(";"):
            out_features, in_features = SHAPES[shape]
            for rows in map(int, options.rows.split(",")):
                seconds, size = product_s(format_name, out_features, in_features, rows, options.threads)
                ops = 2 * rows * out_features * in_features / seconds
                print(
                    f"{format_name:7} {shape:8} {rows:5} {seconds * 1e6:9.1f} {size / seconds / 1e9:6.1f} "
                    f"{size / seconds / memory:6.0%} {ops / 1e9:7.0f} {ops / peak:6.0%}"
                )


if __name__ == "__main__":
    main()
