"""Decoding a mixture of experts at batch 1, beside the memory bandwidth that its active weights allow.

    python benchmarks/experts.py [--formats Q4_0,MXFP4] [--layers 8] [--rows 1,4,16] [--threads 2]

A synthetic model in Qwen3-30B-A3B's shape: 128 experts of 2048 x 768, eight for each token, chosen by a random
router. Each step takes other tokens, so other experts; only routers and experts run, no attention. A share of 100 %
would be reading the weights of the experts that were chosen, once, at the speed at which the same threads read an
array. Of the steps, as of the readings of that array, the fastest counts.
"""

import argparse
import os
import time

import numpy as np
from linear import memory_limit_bytes_per_s

from tokenworks.kernels.backend import Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.program import Expert, Program, ProgramBuilder
from tokenworks.kernels.tensor import Tensor

WIDTH, INNER, EXPERTS, TOP_K, TOKENS, SUBJECTS = 2048, 768, 128, 8, 512, 8
SCALE_BYTES = {"MXFP4": [120], "NVFP4": [34] * 4}


def float_tensor(name: str, values: np.ndarray) -> Tensor:
    return Tensor(name, "F32", values.shape, values.astype(np.float32).reshape(-1).view(np.uint8))


def random_tensor(name: str, format_name: str, shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
    form = FORMATS[format_name]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // form.block_elements, form.block_bytes), np.uint8)
    start = SCALE_BYTES.get(format_name) or np.array([5e-4], np.float16).view(np.uint8).tolist()
    blocks[:, : len(start)] = start
    return Tensor(name, format_name, shape, blocks.reshape(-1))


def model(
    format_name: str, layers: int, skew: float = 0.0, subjects: float = 0.0, seed: int = 1
) -> tuple[Program, dict[str, Tensor]]:
    """Experts share one source, and are packed each for itself. `skew`: standard deviation of routers' biases.
    `subjects`: what tokens of a subject have in common, 0 to 1."""
    rng = np.random.default_rng(seed)
    own, common = rng.standard_normal((TOKENS, WIDTH)), rng.standard_normal((SUBJECTS, WIDTH))
    tokens = (1 - subjects) ** 0.5 * own + subjects**0.5 * common.repeat(TOKENS // SUBJECTS, axis=0)
    weights = {"x": float_tensor("x", tokens)}
    weights["norm"] = float_tensor("norm", np.ones(WIDTH))
    inwards = random_tensor("in", format_name, (INNER, WIDTH), rng)
    outwards = random_tensor("out", format_name, (WIDTH, INNER), rng)
    b = ProgramBuilder()
    x = b.embed("x", WIDTH)
    for layer in range(layers):
        weights[f"{layer}.router"] = float_tensor("router", rng.standard_normal((EXPERTS, WIDTH)) * 0.05)
        experts = [Expert(e, f"{layer}.{e}.gate", f"{layer}.{e}.up", f"{layer}.{e}.down") for e in range(EXPERTS)]
        for expert in experts:
            weights |= {str(expert.gate): inwards, expert.up: inwards, expert.down: outwards}
        normed = b.rmsnorm(x, "norm", 1e-6)
        weights[f"{layer}.bias"] = float_tensor("bias", rng.standard_normal(EXPERTS) * skew)
        logits = b.linear(normed, [f"{layer}.router"], EXPERTS, biases=[f"{layer}.bias"])
        routes = b.route(logits, TOP_K, normalise=True)
        x = b.add(x, b.experts(normed, routes, experts, INNER, "silu", count=EXPERTS))
    return b.finish(x), weights


def step(rows: int, rng: np.random.Generator, subject: int | None = None) -> StepBatch:
    """One token of each of `rows` sequences; of one subject, or of any."""
    counts = np.arange(rows + 1, dtype=np.int32)
    tokens = rng.integers(0, TOKENS, rows).astype(np.int32)
    if subject is not None:
        tokens = subject * (TOKENS // SUBJECTS) + tokens % (TOKENS // SUBJECTS)
    return StepBatch(tokens, np.zeros(rows, np.int32), counts, np.full((rows, 1), -1, np.int32), counts[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="Q4_0,MXFP4")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", default="1,4,16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    print(f"{CpuBackend().isa}, {options.threads} threads")
    print(f"{'format':7} {'GB':>5} {'rows':>5} {'ms':>8} {'active MB':>10} {'GB/s':>6} {'limit':>6} {'share':>6}")
    for format_name in options.formats.split(","):
        program, weights = model(format_name, options.layers)
        executable = CpuBackend().compile(program, weights, Limits(64, 64, 64, 1, 16, "float16", options.threads))
        expert_bytes = (executable.weight_bytes / options.layers - EXPERTS * WIDTH * 4) / EXPERTS
        rng = np.random.default_rng(2)
        for rows in map(int, options.rows.split(",")):
            limit = max(memory_limit_bytes_per_s(options.threads) for _ in range(3))
            shares: list[tuple[float, float, float]] = []
            until = time.perf_counter() + options.seconds
            while time.perf_counter() < until:
                batch = step(rows, rng)
                before = np.array(executable.expert_uses())
                start = time.perf_counter()
                executable.run(batch)
                seconds = time.perf_counter() - start
                active = expert_bytes * int((np.array(executable.expert_uses()) > before).sum())
                shares.append((active / seconds, seconds, active))
            speed, seconds, active = max(shares)
            print(
                f"{format_name:7} {executable.weight_bytes / 1e9:5.2f} {rows:5} {seconds * 1e3:8.2f} "
                f"{active / 1e6:10.1f} {speed / 1e9:6.1f} {limit / 1e9:6.1f} {speed / limit:6.0%}"
            )


if __name__ == "__main__":
    main()
