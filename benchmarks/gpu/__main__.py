"""What the GPU backend makes of a GPU, as shares of ceilings measured in the same run, and of peers'.

    python benchmarks/gpu a|b|c [--out FILE.json] [--seconds 570]

a: the device, its ceilings, every kernel against float64 and beside torch's, FlashInfer's and humming's. b: an
8B-shaped model in bfloat16, batch 1, 32 and 256, and prompts, beside transformers' compiled static cache and its
continuous batching. c: NVFP4 against our own bfloat16, small models, the GPU's waits between steps, the CPU's work,
first tokens, the start. Each part takes under ten minutes and stops opening new points when `--seconds` are over; its
table comes with a JSON of all figures. Needs torch, triton, a GPU; a peer that is missing or fails is reported and left
out.

Times are medians of graph replays between events; what is read is larger than the caches.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import peers
import serving
from kernel_points import part_a
from measure import Report, ceilings, free
from shapes import SHAPES
from steps import compiled_model, decode_point, prompt_point

PARTS = {
    "a": "part A: device and kernels",
    "b": "part B: 8B in bfloat16",
    "c": "part C: NVFP4, small models, waits, start",
}


def part_b(report: Report) -> None:
    top, shape = ceilings(report), SHAPES["8B"]
    decoded: dict[int, float] = {}
    prompted: dict[int, float] = {}

    def own(sequences: int, tokens: int) -> None:
        model = compiled_model(shape, "BF16", sequences, 1024 + tokens, max(tokens, sequences))
        for _ in range(2):  # twice: what differs between the two is noise
            decoded[sequences] = decode_point(report, top, model, "8B", sequences, 1024)
        for count in (2048, 8192):
            if count <= tokens:
                prompted[count] = prompt_point(report, top, model, "8B", count)

    for sequences, tokens in ((1, 8192), (32, 0), (256, 0)):
        report.attempt(f"8B {sequences}", partial(own, sequences, tokens))
    report.attempt("transformers 8B 1", lambda: peers.compiled_decode(report, shape, 1, 1024, decoded.get(1)))
    report.attempt("transformers prompts", lambda: peers.prompts(report, shape, prompted))
    many = {sequences: decoded[sequences] for sequences in (32, 256) if sequences in decoded}
    report.attempt("transformers 8B batches", lambda: peers.batches(report, shape, 1024, many))


def part_c(report: Report) -> None:
    top = ceilings(report)
    times: dict[str, float] = {}

    def own(name: str, form: str, bits: float) -> None:
        begin_s = time.perf_counter()
        model = compiled_model(SHAPES[name], form, 64, 4096, 8192)
        report.add(f"{name} {form} made", time.perf_counter() - begin_s, "s", note=f"{dict(model.phases_s)}")
        times[f"{name} {form}"] = decode_point(report, top, model, name, 1, 1024, bits)
        decode_point(report, top, model, name, 64, 1024, bits)
        for tokens in (2048, 8192):
            times[f"{name} {form} {tokens}"] = prompt_point(report, top, model, name, tokens)
        if form == "BF16":
            report.attempt(f"{name} idle", lambda: serving.idle_points(report, model, name, 1024))
            report.attempt(f"{name} first", lambda: serving.first_tokens(report, model, name, SHAPES[name]))

    small = ((name, "BF16", 16) for name in ("0.6B", "135M", "1.7B"))
    for name, form, bits in (("8B", "BF16", 16), ("8B", "NVFP4", 4.5), *small):
        report.attempt(f"{name} {form}", partial(own, name, form, bits))
    for what in ("", " 2048", " 8192"):
        if {f"8B BF16{what}", f"8B NVFP4{what}"} <= times.keys():
            ratio = times[f"8B BF16{what}"] / times[f"8B NVFP4{what}"]
            report.add(f"NVFP4 against bfloat16, 8B{what or ' 1 x 1024'}", ratio, "x")
    report.attempt("CPU work", lambda: cpu_work(report))
    free()
    report.attempt("start", lambda: serving.starts(report, "8B", SHAPES["8B"]))


def cpu_work(report: Report) -> None:
    model = compiled_model(serving.SMALLEST, "BF16", 64, 1024, 4096)
    serving.cpu_point(report, model, serving.SMALLEST)


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
