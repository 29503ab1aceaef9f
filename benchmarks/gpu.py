"""What the GPU backend makes of a GPU, as shares of ceilings measured in the same run, and of peers'.

    python benchmarks/gpu.py a|b|c [--out FILE.json] [--seconds 570]

a: the device, its ceilings, every kernel against float64. b: an 8B-shaped model in bfloat16, batch 1, 32 and 256, and
prompts, beside transformers' compiled static cache. c: NVFP4 against our own bfloat16, small models, gaps between
steps, start. Each part takes under ten minutes and stops opening new points when `--seconds` are over; its table comes
with a JSON of all figures. Needs torch, triton, a GPU; transformers for the peer, which is left out where it fails.

Times are medians of graph replays between events; what is read is larger than the caches.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_models import SHAPES, Shape, peer_model, program, random_weights

from tokenworks.kernels.backend import Limits, SampleBatch, StepBatch

REPEATS = 21
BLOCK_TOKENS = 16
PEER_TRIES = 2
ROTATED_BYTES = 300_000_000
"""Weights that a product's replay goes through: several times the second-level cache."""
PRODUCTS = (("gate-up", 28672, 4096), ("down", 4096, 14336), ("qkv", 6144, 4096), ("output", 4096, 4096))
"""Of an 8B model: outputs and inputs."""
PARTS = {
    "a": "part A: device and kernels",
    "b": "part B: 8B in bfloat16",
    "c": "part C: NVFP4, small models, gaps, start",
}


class Report:
    """Figures as they come, each with what it is a share of."""

    def __init__(self, part: str, seconds: float) -> None:
        self.part, self.figures, self.end_s = part, [], time.monotonic() + seconds

    def add(
        self, point: str, value: float, unit: str, *, share: float | None = None, of: str = "", note: str = ""
    ) -> None:
        self.figures.append({"point": point, "value": value, "unit": unit, "share": share, "of": of, "note": note})
        shown = "" if share is None else f"  {share:6.1%} of {of}"
        print(f"{point:44} {value:12.4g} {unit:9}{shown}  {note}".rstrip(), flush=True)

    def attempt(self, point: str, what: Callable[[], None]) -> None:
        """Failures are figures too; none ends the part."""
        if time.monotonic() > self.end_s:
            self.add(point, float("nan"), "", note="no time left")
            return
        try:
            what()
        except Exception as error:
            self.add(point, float("nan"), "", note=f"failed: {type(error).__name__}: {str(error)[:160]}")
        gc.collect()  # the point's model, before the next one's


def median_ms(call: Callable[[], object], *, graph: bool = True, repeats: int = REPEATS) -> float:
    """Of `call` on the device: as a graph if it can be one."""
    import torch

    call()
    torch.cuda.synchronize()
    replay = call
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()
        replay = captured.replay
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def ceilings(report: Report) -> dict[str, float]:
    """Bytes a second of a copy (read and written), and of a sum; operations a second of products."""
    import torch

    found: dict[str, float] = {}
    big = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    other, floats = torch.empty_like(big), big.view(torch.float32)
    found["copy"] = 2 * big.nbytes / median_ms(lambda: other.copy_(big)) * 1e3
    found["read"] = big.nbytes / median_ms(lambda: torch.sum(floats)) * 1e3
    x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    found["bf16"] = 2 * 8192**3 / median_ms(lambda: torch.mm(x, y)) * 1e3
    for name in ("copy", "read"):
        report.add(f"ceiling: {name}", found[name] / 1e12, "TB/s")
    report.add("ceiling: bf16 8192^3", found["bf16"] / 1e12, "TFLOP/s")

    def fp8() -> None:
        a, b = (each.to(torch.float8_e4m3fn) for each in (x, y))
        one = torch.ones((), device="cuda")
        rate = 2 * 8192**3 / median_ms(lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)) * 1e3
        report.add("ceiling: fp8 8192^3", rate / 1e12, "TFLOP/s")

    report.attempt("ceiling: fp8 8192^3", fp8)
    return found


def error_of(made: Any, wanted: Any) -> float:
    """The largest difference as a share of the largest number; NaN where something was left unwritten."""
    return float((made.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def part_a(report: Report) -> None:
    import torch

    properties = torch.cuda.get_device_properties()
    clocks = subprocess.run(
        ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem,driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}, {clocks}")
    top = ceilings(report)
    shape = SHAPES["8B"]
    for rows in (1, 8, 16, 32):
        for name, n, k in PRODUCTS:
            report.attempt(f"product {name} {rows}", partial(_product, report, top, name, rows, n, k))
    for sequences, context in ((32, 4096), (1, 32768), (1, 1024)):
        report.attempt(
            f"attention {sequences} x {context}", partial(_attention, report, top, shape, sequences, context)
        )
    report.attempt("sampling", lambda: _sampling(report))


def _product(report: Report, top: dict[str, float], name: str, rows: int, n: int, k: int) -> None:
    import torch

    from tokenworks.kernels.cuda.finish import Finish, Scratch
    from tokenworks.kernels.cuda.products import skinny

    scratch = Scratch(torch.device("cuda"))
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    many = [
        torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02
        for _ in range(max(1, ROTATED_BYTES // (n * k * 2)))
    ]
    outs = [torch.full((rows, n), torch.nan, device="cuda", dtype=torch.float32) for _ in many]

    def all_of_them() -> None:
        for weights, out in zip(many, outs, strict=True):
            skinny(x, weights, Finish(out, scratch))

    ms = median_ms(all_of_them) / len(many)
    error = error_of(outs[-1], x.double() @ many[-1].double().t())
    theirs = median_ms(lambda: [torch.mm(x, weights.t()) for weights in many]) / len(many)
    rate = n * k * 2 / ms * 1e3
    note = f"error {error:.1e}, {theirs / ms:.2f}x cuBLAS"
    report.add(f"product {name} {rows}", ms * 1e3, "us", share=rate / top["copy"], of="copy", note=note)


def _attention(report: Report, top: dict[str, float], shape: Shape, sequences: int, context: int) -> None:
    import torch

    from tokenworks.kernels.cuda.attention import Seen, attend, splits_for
    from tokenworks.kernels.cuda.attention import Shape as HeadShape
    from tokenworks.kernels.cuda.finish import Scratch
    from tokenworks.kernels.program import Attend, Value

    heads, kv, head = shape.heads, shape.kv_heads, shape.head
    nowhere = Value(0, 0, 1, 1)
    op = Attend(nowhere, nowhere, nowhere, nowhere, 0, heads, kv, head, head**-0.5, 0, 0.0)
    blocks = context // BLOCK_TOKENS
    q = torch.randn(sequences, heads * head, device="cuda", dtype=torch.bfloat16)
    keys, values = (
        torch.randn(sequences * blocks, kv, BLOCK_TOKENS, head, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    table = torch.randperm(sequences * blocks, device="cuda", dtype=torch.int32)
    every = torch.arange(sequences, device="cuda", dtype=torch.int32)
    ends = torch.full_like(every, context)
    seen = Seen(
        ends - 1, every, ends, None, None, table, torch.tensor([blocks, 0, 0, 0], dtype=torch.int32, device="cuda")
    )
    out, scratch = torch.full_like(q, torch.nan), Scratch(torch.device("cuda"))
    how, splits = HeadShape(heads, kv, head, head, 0), splits_for(sequences, kv, context)
    ms = median_ms(
        lambda: attend(how, seen, q, out, keys, values, None, None, scratch, op, tile_tokens=1, splits=splits)
    )
    order = table.long().view(sequences, blocks)
    k, v = (each[order].permute(0, 2, 1, 3, 4).reshape(sequences, kv, context, head) for each in (keys, values))
    grouped = q.view(sequences, kv, heads // kv, head)
    wanted = torch.softmax(grouped[:1].double() @ k[:1].double().transpose(2, 3) * head**-0.5, dim=3) @ v[:1].double()
    error = error_of(out[:1], wanted.reshape(1, -1))

    def peer() -> object:
        return torch.nn.functional.scaled_dot_product_attention(
            q.view(sequences, heads, 1, head), k, v, enable_gqa=True
        )

    theirs = median_ms(peer)
    share = (keys.nbytes + values.nbytes) / ms * 1e3 / top["copy"]
    note = f"error {error:.1e}, {theirs / ms:.2f}x SDPA on contiguous K and V, {splits} splits"
    report.add(f"attention {sequences} x {context}", ms * 1e3, "us", share=share, of="copy", note=note)


def _sampling(report: Report) -> None:
    import torch

    from tokenworks.kernels.cuda.sample import sample

    logits = torch.randn(64, 128256, device="cuda") * 3
    full = [torch.full((64,), value, device="cuda") for value in (0.8, 0.95, 0.02, 0.4)]
    top_k, out = (
        torch.full((64,), 50, device="cuda", dtype=torch.int32),
        torch.empty(64, device="cuda", dtype=torch.int32),
    )
    ms = median_ms(lambda: sample(logits, full[0], top_k, full[1], full[2], full[3], out))
    report.add("sampling 64 rows of 128256", ms * 1e3, "us")


def compiled_model(shape: Shape, form: str, sequences: int, context: int, step_tokens: int) -> Any:
    """Ready to run: the time of it is part of what is measured in part C."""
    from tokenworks.kernels.cuda.backend import CudaBackend

    blocks = sequences * (context // BLOCK_TOKENS + 2)
    limits = Limits(step_tokens, sequences, sequences, blocks, BLOCK_TOKENS, "bfloat16", os.cpu_count() or 1)
    return CudaBackend().compile(program(shape), random_weights(shape, form), limits)


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
    """(ms of a step's launches alone, ms of a step with all that a server does for it: inputs, run, greedy tokens)."""
    import torch

    zeros = np.zeros(len(batch.tokens), np.float32)
    how = SampleBatch(zeros, zeros.astype(np.int32), zeros + 1, zeros, zeros)
    model.sample(model.run(batch), how)
    graphs = model._main.graphs
    rows = graphs.rows_for(batch)
    graph = next(graph for (size, _), graph in graphs._captured.items() if size == rows)
    alone = median_ms(graph.replay, graph=False)
    torch.cuda.synchronize()
    times = []
    for _ in range(steps):
        begin_s = time.perf_counter()
        model.sample(model.run(batch), how)
        times.append((time.perf_counter() - begin_s) * 1e3)
    return alone, statistics.median(times)


def decode_point(
    report: Report, top: dict[str, float], model: Any, name: str, sequences: int, context: int, bits: float = 16
) -> float:
    shape = SHAPES[name]
    alone, served = step_times(model, decodes(shape, sequences, context))
    floor_ms = shape.decode_bytes(sequences, context, bits) / top["copy"] * 1e3
    note = f"{sequences / served * 1e3:.0f} tok/s, host {1e3 * (served - alone):.0f} us"
    report.add(
        f"{name} {bits:g} bits, {sequences} x {context}", alone, "ms", share=floor_ms / alone, of="copy", note=note
    )
    return alone


def prompt_point(report: Report, top: dict[str, float], model: Any, name: str, tokens: int) -> None:
    shape, batch = SHAPES[name], prompt(SHAPES[name], tokens)
    ms = median_ms(lambda: model.run(batch), graph=False, repeats=7)
    share = shape.prompt_flops(tokens) / top["bf16"] * 1e3 / ms
    report.add(f"{name} prompt of {tokens}", ms, "ms", share=share, of="bf16 product")


def part_b(report: Report) -> None:
    top = ceilings(report)
    shape, ours = SHAPES["8B"], {}

    def own(sequences: int, tokens: int) -> None:
        model = compiled_model(shape, "BF16", sequences, 1024 + tokens, max(tokens, sequences))
        for _ in range(2):  # twice: what differs between the two is noise
            ours[sequences] = decode_point(report, top, model, "8B", sequences, 1024)
        for count in (2048, 8192):
            if count <= tokens:
                report.attempt(f"8B prompt of {count}", partial(prompt_point, report, top, model, "8B", count))

    report.attempt("8B 256", lambda: own(256, 0))
    report.attempt("8B 32", lambda: own(32, 0))
    report.attempt("8B 1", lambda: own(1, 8192))
    report.attempt("transformers 8B 1", lambda: peer_decode(report, shape, 1, 1024, ours.get(1)))


def peer_decode(report: Report, shape: Shape, sequences: int, context: int, ours_ms: float | None) -> None:
    """transformers: static cache, torch.compile with graphs."""
    import torch
    from transformers import StaticCache

    model = peer_model(shape, "cuda")
    cache = StaticCache(config=model.config, max_cache_len=context + 8)
    ids = torch.randint(0, shape.vocabulary, (sequences, 1), device="cuda")
    place = torch.tensor([context - 1], device="cuda")
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        model(
            torch.randint(0, shape.vocabulary, (sequences, context - 1), device="cuda"),
            past_key_values=cache,
            use_cache=True,
        )

        def step() -> object:
            return forward(ids, past_key_values=cache, cache_position=place, use_cache=True)

        for _ in range(PEER_TRIES + 1):
            step()
        ms = median_ms(step, graph=False)
    note = "" if ours_ms is None else f"ours is {ms / ours_ms:.2f}x as fast"
    report.add(f"transformers compiled, {sequences} x {context}", ms, "ms", note=note)


def part_c(report: Report) -> None:
    top = ceilings(report)

    def own(name: str, form: str, bits: float) -> float:
        begin_s = time.perf_counter()
        model = compiled_model(SHAPES[name], form, 64, 1024, 4096)
        report.add(f"{name} {form} ready", time.perf_counter() - begin_s, "s", note="weights, kernels, graphs")
        alone = decode_point(report, top, model, name, 1, 1024, bits)
        decode_point(report, top, model, name, 64, 1024, bits)
        report.attempt(f"{name} prompt", lambda: prompt_point(report, top, model, name, 1024))
        return alone

    times: dict[str, float] = {}
    small = ((name, "BF16", 16) for name in ("1.7B", "0.6B", "135M"))
    for name, form, bits in (("8B", "BF16", 16), ("8B", "NVFP4", 4.5), *small):
        report.attempt(f"{name} {form}", lambda: times.update({f"{name} {form}": own(name, form, bits)}))  # noqa: B023
    if {"8B BF16", "8B NVFP4"} <= times.keys():
        report.add("NVFP4 against bfloat16, 8B, 1", times["8B BF16"] / times["8B NVFP4"], "x")
    report.attempt("start", lambda: starts(report))


def starts(report: Report) -> None:
    """A fresh process until the 8B model is ready: with no compiled kernels, and with those of the time before."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from gpu import SHAPES, compiled_model\n"
            "print(compiled_model(SHAPES['8B'], 'BF16', 64, 1024, 4096).phases_s)"
        )
        for how in ("cold", "warm"):
            begin_s = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], env=os.environ | {"TRITON_CACHE_DIR": folder}, check=True)
            report.add(f"8B ready, {how} kernel cache", time.perf_counter() - begin_s, "s")


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, help="JSON of all figures; default: gpu-PART.json")
    parser.add_argument("--seconds", type=float, default=540.0, help="no new point is begun after so many")
    return parser.parse_args(given)


def main(given: list[str]) -> None:
    chosen = arguments(given)
    report = Report(chosen.part, chosen.seconds)
    print(PARTS[chosen.part], flush=True)
    out = chosen.out or Path(f"gpu-{chosen.part}.json")
    try:
        {"a": part_a, "b": part_b, "c": part_c}[chosen.part](report)
    finally:
        out.write_text(json.dumps({"part": chosen.part, "figures": report.figures}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
