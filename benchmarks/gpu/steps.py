"""Steps of whole models: decodes at some context, prompts."""

import os
import statistics
import time
from typing import Any

import numpy as np
from measure import Report, device, median_ms, wait
from shapes import SHAPES, Shape, program, random_weights

from tokenworks.kernels.backend import Backend, Limits, SampleBatch, StepBatch

BLOCK_TOKENS = 16


def backend() -> Backend:
    from tokenworks.kernels.cuda.backend import CudaBackend

    return CudaBackend(device())


def limits_of(sequences: int, context: int, step_tokens: int) -> Limits:
    blocks = sequences * (context // BLOCK_TOKENS + 2)
    return Limits(step_tokens, sequences, sequences, blocks, BLOCK_TOKENS, "bfloat16", os.cpu_count() or 1)


def compiled_model(shape: Shape, form: str, sequences: int, context: int, step_tokens: int) -> Any:
    """Ready to run, with random numbers for what it has kept: zeros take less power, and so less time."""
    made: Any = backend().compile(
        program(shape), random_weights(shape, form), limits_of(sequences, context, step_tokens)
    )
    for kept in made._caches.values():
        for each in kept:
            each.normal_()
    return made


def decodes(shape: Shape, sequences: int, context: int) -> StepBatch:
    """Each sequence at position context - 1, blocks in any order."""
    columns = context // BLOCK_TOKENS + 1
    tables = np.random.default_rng(0).permutation(sequences * columns).astype(np.int32).reshape(sequences, columns)
    every = np.arange(sequences + 1, dtype=np.int32)
    tokens = np.random.default_rng(1).integers(0, shape.vocabulary, sequences).astype(np.int32)
    return StepBatch(tokens, np.full(sequences, context - 1, np.int32), every, tables, every[:-1])


def prompt(shape: Shape, tokens: int) -> StepBatch:
    columns = tokens // BLOCK_TOKENS + 1
    ids = np.random.default_rng(2).integers(0, shape.vocabulary, tokens).astype(np.int32)
    starts, last = np.array([0, tokens], np.int32), np.array([tokens - 1], np.int32)
    return StepBatch(ids, np.arange(tokens, dtype=np.int32), starts, np.arange(columns, dtype=np.int32)[None], last)


def step_times(model: Any, batch: StepBatch, steps: int = 50) -> tuple[float, float]:
    """(ms of a step's launches alone, ms of a step with its inputs, greedy tokens, and the wait for them)."""
    zeros = np.zeros(len(batch.tokens), np.float32)
    how = SampleBatch(zeros, zeros.astype(np.int32), zeros + 1, zeros, zeros)
    np.asarray(model.sample(model.run(batch), how))
    graphs = model._main.graphs
    if graphs is None:
        alone = median_ms(lambda: model.run(batch), graph=False, repeats=3)
    else:
        rows = graphs.rows_for(batch)
        graph = next(graph for (size, _), graph in graphs._captured.items() if size == rows)
        alone = median_ms(graph.replay, graph=False)
    wait()
    times = []
    for _ in range(steps):
        begin_s = time.perf_counter()
        np.asarray(model.sample(model.run(batch), how))
        times.append((time.perf_counter() - begin_s) * 1e3)
    return alone, statistics.median(times)


def decode_point(
    report: Report, top: dict[str, float], model: Any, name: str, sequences: int, context: int, bits: float = 16
) -> float:
    """ms of the launches."""
    shape = SHAPES[name]
    alone, served = step_times(model, decodes(shape, sequences, context))
    floor_ms = shape.decode_bytes(sequences, context, bits) / top["copy"] * 1e3
    note = f"{sequences / alone * 1e3:.0f} tok/s; {served - alone:.3f} ms more where each step is waited for"
    report.add(
        f"{name} {bits:g} bits, {sequences} x {context}", alone, "ms", share=floor_ms / alone, of="copy", note=note
    )
    return alone


def prompt_point(report: Report, top: dict[str, float], model: Any, name: str, tokens: int) -> float:
    """ms"""
    shape, batch = SHAPES[name], prompt(SHAPES[name], tokens)
    ms = median_ms(lambda: model.run(batch), graph=False, repeats=7)
    share = shape.prompt_flops(tokens) / top["bf16"] * 1e3 / ms
    report.add(f"{name} prompt of {tokens}", ms, "ms", share=share, of="bf16 product")
    return ms
