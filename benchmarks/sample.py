"""Sampling of the CPU backend beside what this machine can do at all: the time to read the logits once.

python benchmarks/sample.py [--threads 2] [--rows 1]
"""

import argparse
import os

import numpy as np
from linear import best_s, memory_limit_bytes_per_s

from tokenworks.kernels.backend import Limits, SampleBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import ProgramBuilder
from tokenworks.kernels.tensor import Tensor

OPTIONS = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature 1": (1.0, 0, 1.0, 0.0),
    "top_k 40": (1.0, 40, 1.0, 0.0),
    "top_p 0.95": (1.0, 0, 0.95, 0.0),
    "all": (0.7, 64, 0.95, 0.05),
}
"""temperature, top_k, top_p, min_p"""
SPREADS = {"sure": 6.0, "unsure": 2.5, "flat": 0.5}
"""Standard deviation of the logits; a language model's lie between the first two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, default=1)
    options = parser.parse_args()
    rows, threads = options.rows, options.threads

    builder = ProgramBuilder()
    weights = {"x": Tensor("x", "F32", (1, 4), np.zeros(16, np.uint8))}
    limits = Limits(1, 1, 1, 0, 16, "float16", threads)
    executable = CpuBackend().compile(builder.finish(builder.embed("x", 4)), weights, limits)
    memory = memory_limit_bytes_per_s(threads)
    print(f"{CpuBackend().isa}, {threads} threads; limit: {memory / 1e9:.1f} GB/s")
    print(f"{'vocabulary':>10} {'logits':7} {'options':14} {'µs a row':>9} {'share':>6}")
    rng = np.random.default_rng(0)
    for vocabulary in (49152, 262144):
        for kind, spread in SPREADS.items():
            logits = (rng.standard_normal((rows, vocabulary)) * spread).astype(np.float32)
            for name, (temperature, top_k, top_p, min_p) in OPTIONS.items():
                uniform = rng.random(rows).astype(np.float32)
                how = SampleBatch(
                    *(
                        np.full(rows, x, t)
                        for x, t in ((temperature, "f4"), (top_k, "i4"), (top_p, "f4"), (min_p, "f4"))
                    ),
                    uniform,
                )
                seconds = best_s(lambda logits=logits, how=how: executable.sample(logits, how), 0.2) / rows
                share = vocabulary * 4 / seconds / memory
                print(f"{vocabulary:10} {kind:7} {name:14} {seconds * 1e6:9.1f} {share:6.0%}")


if __name__ == "__main__":
    main()
