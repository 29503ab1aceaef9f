"""Latent attention (models/parts/latent.py) of the CPU backend beside what this machine can do at all.

    python benchmarks/latent.py [--cache int8] [--threads 2] [--formats Q8_0,NVFP4]

DeepSeek-V2-Lite's layer (16 heads, a latent of 512 and 64 rotary columns) and the attention of DeepSeek-V3's (128
heads). First the attention alone: GB/s of the cache beside reading memory, and GFLOP/s beside attention of the same
arithmetic per byte whose K and V are separate (16 heads of 512 that share one K and V), measured in the same run. Then
whole layers without their experts, one token of each sequence: GB/s of weights and cache beside reading memory.
"""

import argparse
import os
from typing import get_args

import numpy as np
from experts import float_tensor, random_tensor
from linear import best_s, memory_limit_bytes_per_s

from tokenworks.kernels.backend import CacheType, Executable, Limits, StepBatch
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import KvLayer, ProgramBuilder
from tokenworks.kernels.tensor import Tensor
from tokenworks.kvcache.layout import token_bytes
from tokenworks.models.parts.latent import Latent
from tokenworks.models.parts.rope import Rope

RANK, TURNED, CONTEXT, BLOCK_TOKENS, MOST = 512, 64, 8192, 16, 16
LITE = Latent(
    heads=16, rank=RANK, turned=TURNED, unturned=128, value_size=128, scale=192**-0.5, rope="global"
)  # fmt: skip
WIDTH = 2048
DECODES = ((1, 1024, 1), (1, 8000, 1), (1, 1024, 4), (1, 8000, 4), (1, 1024, 16), (1, 8000, 16))
PREFILLS = ((512, 0, 1), (512, 2048, 1))


def limits(cache: CacheType, threads: int) -> Limits:
    return Limits(512, MOST, MOST, MOST * CONTEXT // BLOCK_TOKENS, BLOCK_TOKENS, cache, threads)


def attention(heads: int, layers: int, cache: CacheType, threads: int) -> Executable:
    """0 heads: 16 of 512 that share K and V."""
    b, size, kv = ProgramBuilder(), RANK + TURNED if heads else RANK, 1 if heads else 2
    x = out = b.embed("x", ((heads or 16) + kv) * size)
    q, k = x.columns(0, (heads or 16) * size), x.columns((heads or 16) * size, size)
    for _ in range(layers):
        if heads:
            out = b.attend_latent(q, k, heads=heads, head_size=size, latent=RANK, scale=size**-0.5)
        else:
            v = x.columns(17 * size, size)
            out = b.attend(q, k, v, heads=16, kv_heads=1, head_size=size, scale=size**-0.5)
    table = np.random.default_rng(0).standard_normal((64, x.width))
    return CpuBackend().compile(b.finish(out), {"x": float_tensor("x", table)}, limits(cache, threads))


def whole(layers: int, form: str, cache: CacheType, threads: int) -> Executable:
    """Each layer's weights are packed for itself. As from files, the heads' halves of K are float16 where others have
    blocks."""
    rng, b = np.random.default_rng(0), ProgramBuilder()
    frequencies = Rope(size=TURNED, base=1e4).inverse_frequencies(CONTEXT)
    weights = {"rope.global": float_tensor("", frequencies), "x": float_tensor("", rng.standard_normal((64, WIDTH)))}
    x = b.embed("x", WIDTH)
    for number in range(layers):
        name = f"{number}."
        for weight, shape in LITE.shapes(WIDTH).items():
            if len(shape) == 1:
                weights[name + weight] = float_tensor("", np.ones(shape))
            elif weight.endswith("k_up"):
                halves = (rng.standard_normal(shape) / 30).astype(np.float16)
                weights[name + weight] = Tensor("", "F16", shape, halves.reshape(-1).view(np.uint8))
            else:
                weights[name + weight] = random_tensor("", form, shape, rng)
        weights[name + "norm"] = float_tensor("", np.ones(WIDTH))
        mixed = LITE.mix(b, name, b.rmsnorm(x, name + "norm", 1e-6))
        x = b.add(x, LITE.project(b, name, mixed, WIDTH))
    return CpuBackend().compile(b.finish(x), weights, limits(cache, threads))


def step(tokens: int, position: int, sequences: int) -> StepBatch:
    columns = CONTEXT // BLOCK_TOKENS
    rows = np.arange(tokens * sequences, dtype=np.int32)
    return StepBatch(
        rows % 64,
        np.tile(np.arange(position, position + tokens, dtype=np.int32), sequences),
        np.arange(0, tokens * sequences + 1, tokens, dtype=np.int32),
        np.arange(sequences * columns, dtype=np.int32).reshape(sequences, columns),
        rows[:1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", choices=get_args(CacheType), default="int8")
    parser.add_argument("--formats", default="Q8_0,NVFP4")
    parser.add_argument("--heads", default="0,16,128")
    options = parser.parse_args()
    threads, cache = options.threads, options.cache
    memory = memory_limit_bytes_per_s(threads)
    print(f"{CpuBackend().isa}, {threads} threads, {cache} cache; limit: {memory / 1e9:.1f} GB/s")
    print("layers      tokens  after  seqs   ms a layer     GB/s  share  GFLOP/s  of separate K and V")
    separate: dict[tuple[int, int, int], float] = {}
    for heads in map(int, options.heads.split(",")):
        size, layers = (RANK + TURNED, 8 if heads == 16 else 2) if heads else (RANK, 4)
        run = attention(heads, layers, cache, threads).run
        for shape in (*DECODES, *PREFILLS):
            if heads == 128 and shape[2] > 4:
                continue
            tokens, position, sequences = shape
            batch = step(*shape)
            seconds = best_s(lambda run=run, batch=batch: run(batch)) / layers
            flops = sequences * tokens * (position + (tokens + 1) / 2) * (heads or 16) * 2 * (size + RANK) / seconds
            layer = KvLayer(1, size, 0, RANK if heads else 0)
            speed = sequences * (position + tokens) * token_bytes([layer], cache) / seconds
            separate.setdefault(shape, flops)
            name = f"{heads} heads" if heads else "separate"
            print(
                f"{name:10} {tokens:7} {position:6} {sequences:5} {seconds * 1e3:12.3f} {speed / 1e9:8.1f} "
                f"{speed / memory:6.0%} {flops / 1e9:8.1f} {flops / separate[shape]:8.0%}"
            )
    print("whole layers, 16 heads; a token of each sequence")
    for form in options.formats.split(","):
        layers = 8
        executable = whole(layers, form, cache, threads)
        weight_bytes = (executable.weight_bytes - 64 * WIDTH * 4) / layers
        for shape in DECODES:
            tokens, position, sequences = shape
            batch = step(*shape)
            seconds = best_s(lambda run=executable.run, batch=batch: run(batch)) / layers
            cached = sequences * (position + 1) * token_bytes([KvLayer(1, RANK + TURNED, 0, RANK)], cache)
            speed = (weight_bytes + cached) / seconds
            print(
                f"{form:10} {tokens:7} {position:6} {sequences:5} {seconds * 1e3:12.3f} {speed / 1e9:8.1f} "
                f"{speed / memory:6.0%}"
            )


if __name__ == "__main__":
    main()
