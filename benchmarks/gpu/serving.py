"""Of the engine around the steps: how long the GPU waits between them, what the CPU does for one, the first token, and
the start."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report, wait
from shapes import SHAPES, Shape, write_checkpoint

from tokenworks.engine.engine import Engine
from tokenworks.protocol.messages import Generate
from tokenworks.protocol.sampling import Sampling

STEPS = 60
SMALLEST = Shape(1, 64, 128, 4, 4, 16, 512, tied=True)
"""A model that costs a GPU next to nothing, so that the CPU's work is what a step takes."""


def engine_of(model: Any, shape: Shape, context: int) -> Engine:
    return Engine(
        model, model._limits, eos_token_ids=frozenset(), context_tokens=context, vocabulary=shape.vocabulary,
        tokenizer_json=str, speculate=False,
    )  # fmt: skip


def ask(shape: Shape, name: str, tokens: int, new_tokens: int, seed: int) -> Generate:
    ids = np.random.default_rng(seed).integers(0, shape.vocabulary, tokens).tolist()
    return Generate(name, tuple(ids), Sampling(max_tokens=new_tokens, temperature=0.0, seed=seed))


def step_ms(engine: Engine, shape: Shape, sequences: int, context: int, steps: int = STEPS) -> tuple[float, float]:
    """(ms of wall time, ms of the GPU at work; NaN without a GPU) of a step in which all sequences decode."""
    import torch

    for number in range(sequences):
        engine.add(ask(shape, f"{context} {sequences} {number}", context, 4 * steps, number), time.perf_counter())
    for _ in range(10_000):
        stats = engine.step(time.perf_counter()).stats
        if stats.running == sequences and not stats.waiting and _all_decode(engine):
            break
    for _ in range(5):
        engine.step(time.perf_counter())
    times = []
    for _ in range(steps):
        begin_s = time.perf_counter()
        engine.step(begin_s)
        times.append(time.perf_counter() - begin_s)
    busy = float("nan")
    if torch.cuda.is_available():
        wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(steps // 2):
                engine.step(time.perf_counter())
            wait()
        busy = _busy_us(profile) / (steps // 2) / 1e3
    for name in list(engine._scheduler._sequences):
        engine.cancel(name)
    while engine.busy:
        engine.step(time.perf_counter())
    return sum(times) / steps * 1e3, busy


def _all_decode(engine: Engine) -> bool:
    return all(each.computed >= len(each.request.prompt_ids) for each in engine._scheduler._running)


def _busy_us(profile: Any) -> float:
    """The time in which at least one kernel or copy ran."""
    import torch

    on_device = torch.autograd.DeviceType.CUDA
    spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events() if e.device_type == on_device)
    busy, until = 0.0, 0.0
    for begin, end in spans:
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy


def idle_points(report: Report, model: Any, name: str, context: int, batches: tuple[int, ...] = (1, 8, 64)) -> None:
    shape = SHAPES[name]
    engine = engine_of(model, shape, 2 * context)
    for sequences in batches:
        wall, busy = step_ms(engine, shape, sequences, context)
        note = f"a step takes {wall:.3f} ms, of which the GPU works {busy:.3f}; {sequences / wall * 1e3:.0f} tok/s"
        report.add(f"{name} GPU idle between steps, {sequences}", (wall - busy) * 1e3, "us", note=note)


def cpu_point(report: Report, model: Any, shape: Shape, sequences: int = 64) -> None:
    """With a model of one small layer, whose GPU work hides behind it."""
    wall, busy = step_ms(engine_of(model, shape, 1024), shape, sequences, 64)
    report.add(f"CPU work of a step, {sequences}", wall, "ms", note=f"beside {busy:.3f} ms of the GPU")


def first_tokens(report: Report, model: Any, name: str, shape: Shape, lengths: tuple[int, ...] = (128, 2048)) -> None:
    """From a request's arrival at an idle engine to its first token."""
    engine, seed = engine_of(model, shape, max(lengths) + 16), 100
    for tokens in lengths:
        times = []
        for _ in range(7):
            seed += 1
            begin_s = time.perf_counter()
            engine.add(ask(shape, f"first {seed}", tokens, 2, seed), begin_s)
            while not any(chunk.token_ids for chunk in engine.step(time.perf_counter()).chunks):
                pass
            times.append(time.perf_counter() - begin_s)
            while engine.busy:
                engine.step(time.perf_counter())
        report.add(f"{name} first token after {tokens}", statistics.median(times[1:]) * 1e3, "ms")


LOAD = """
import sys, time
begun_s = time.perf_counter()
from tokenworks.config import EngineSettings
from tokenworks.fleet.load import load
from tokenworks.fleet.settings import WorkerSettings
engine = EngineSettings(device=sys.argv[2], cache_mb=int(sys.argv[3]))
phases = {}
load(WorkerSettings(path=sys.argv[1], engine=engine), phases)
print({"imports": 0.0, **phases, "all": time.perf_counter() - begun_s})
"""


def starts(report: Report, name: str, shape: Shape, device: str = "gpu", cache_mb: int = 8192) -> None:
    """A fresh process until a checkpoint on the disk is ready to serve: with no compiled kernels, and with those of the
    time before."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as kernels:
        write_checkpoint(shape, Path(folder))
        for how in ("cold", "warm"):
            begin_s = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", LOAD, folder, device, str(cache_mb)],
                env=os.environ | {"TRITON_CACHE_DIR": kernels}, check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            spent_s = time.perf_counter() - begin_s
            report.add(f"{name} ready, {how} kernel cache", spent_s, "s", note=done.stdout.strip())
