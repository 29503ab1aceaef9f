"""Part A: each kernel alone, at an 8B model's sizes: right against float64, and how fast beside peers."""

import subprocess
from functools import partial
from typing import Any

from measure import Report, ceilings, device, error_of, median_ms, wait
from peer_kernels import attention_peers, humming
from shapes import SHAPES, Shape, random_weights

from tokenworks.kernels.program import Attend, Value

BLOCK_TOKENS = 16
ROTATED_BYTES = 300_000_000
"""Weights that a product's replay goes through: several times the second-level cache."""
PRODUCTS = (("gate-up", 28672, 4096), ("down", 4096, 14336), ("qkv", 6144, 4096), ("output", 4096, 4096))
"""Of an 8B model: outputs and inputs."""


def part_a(report: Report) -> None:
    import torch

    properties = torch.cuda.get_device_properties()
    clocks = subprocess.run(
        ["nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem,driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}, {clocks}")
    top = ceilings(report)
    for rows in (1, 8, 16, 32):
        for name, n, k in PRODUCTS:
            report.attempt(f"product {name} {rows}", partial(product, report, top, name, rows, n, k))
    for rows in (1, 16):
        for name, n, k in PRODUCTS[:2]:
            report.attempt(f"NVFP4 {name} {rows}", partial(packed_product, report, top, name, rows, n, k))
    for sequences, context in ((32, 4096), (1, 32768), (1, 1024)):
        point = f"attention {sequences} x {context}"
        report.attempt(point, partial(attention, report, top, SHAPES["8B"], sequences, context))
    report.attempt("sampling", partial(sampling, report))


def product(report: Report, top: dict[str, float], name: str, rows: int, n: int, k: int) -> None:
    import torch

    from tokenworks.kernels.cuda.products.dense import skinny
    from tokenworks.kernels.cuda.products.finish import Finish
    from tokenworks.kernels.cuda.scratch import Scratch

    scratch = Scratch(torch.device(device()))
    x = torch.randn(rows, k, device=device(), dtype=torch.bfloat16)
    count = max(1, ROTATED_BYTES // (n * k * 2))
    many = [torch.randn(n, k, device=device(), dtype=torch.bfloat16) * 0.02 for _ in range(count)]
    outs = [torch.full((rows, n), torch.nan, device=device(), dtype=torch.float32) for _ in many]

    def all_of_them() -> None:
        for weights, out in zip(many, outs, strict=True):
            skinny(x, weights, Finish(out, scratch))

    ms = median_ms(all_of_them) / len(many)
    error = error_of(outs[-1], x.double() @ many[-1].double().t())
    theirs = median_ms(lambda: [torch.mm(x, weights.t()) for weights in many]) / len(many)
    rate = n * k * 2 / ms * 1e3
    note = f"error {error:.1e}, {theirs / ms:.2f}x cuBLAS"
    report.add(f"product {name} {rows}", ms * 1e3, "us", share=rate / top["copy"], of="copy", note=note)


def packed_product(report: Report, top: dict[str, float], name: str, rows: int, n: int, k: int) -> None:
    """Of 4.5 bits a weight, beside humming's where that is installed."""
    import torch

    from tokenworks.kernels.cuda.loading import Loading, Source
    from tokenworks.kernels.cuda.products.blocks import BlockMatrix, pack_blocks
    from tokenworks.kernels.cuda.products.finish import Finish
    from tokenworks.kernels.cuda.scratch import Scratch
    from tokenworks.kernels.tensor import Description

    where = torch.device(device())
    tensors = random_weights(Shape(1, k, n, 1, 1, k, 64, tied=True), "NVFP4")
    tensor = tensors["0.gate"]
    count = max(1, ROTATED_BYTES // (n * k * 9 // 16))
    many: list[BlockMatrix] = []
    with Loading(where, 8) as loading:
        for _ in range(count):
            made = pack_blocks([Source(Description(tensor.format, tensor.shape), lambda: tensor)], loading)
            assert made is not None
            many.append(made)
    wait()
    x = torch.randn(rows, k, device=where, dtype=torch.bfloat16)
    out, scratch = torch.full((rows, n), torch.nan, device=where, dtype=torch.bfloat16), Scratch(where)
    ms = median_ms(lambda: [each.multiply(x, Finish(out, scratch)) for each in many]) / count
    written = torch.empty(n, k, device=where, dtype=torch.bfloat16)
    many[-1].dequantise(written)
    many[-1].multiply(x, Finish(out, scratch))
    error = error_of(out, x.double() @ written.double().t())
    share = n * k * 9 / 16 / ms * 1e3 / top["copy"]
    report.add(f"NVFP4 {name} {rows}", ms * 1e3, "us", share=share, of="copy", note=f"error {error:.1e}")
    report.attempt(f"humming {name} {rows}", partial(humming, report, name, x, n, count, ms))


def attention(report: Report, top: dict[str, float], shape: Shape, sequences: int, context: int) -> None:
    import torch

    from tokenworks.kernels.cuda.attention.launch import Seen, attend, splits_for
    from tokenworks.kernels.cuda.attention.launch import Shape as HeadShape
    from tokenworks.kernels.cuda.scratch import Scratch

    heads, kv, head = shape.heads, shape.kv_heads, shape.head
    nowhere = Value(0, 0, 1, 1)
    op = Attend(nowhere, nowhere, nowhere, nowhere, 0, heads, kv, head, head**-0.5, 0, 0.0)
    blocks = context // BLOCK_TOKENS
    q = torch.randn(sequences, heads * head, device=device(), dtype=torch.bfloat16)
    keys, values = (
        torch.randn(sequences * blocks, kv, BLOCK_TOKENS, head, device=device(), dtype=torch.bfloat16) for _ in range(2)
    )
    table = torch.randperm(sequences * blocks, device=device(), dtype=torch.int32)
    every = torch.arange(sequences, device=device(), dtype=torch.int32)
    ends = torch.full_like(every, context)
    columns = torch.tensor([blocks, 0, 0, 0], dtype=torch.int32, device=device())
    seen = Seen(ends - 1, every, ends, None, None, table, columns)
    out, scratch = torch.full_like(q, torch.nan), Scratch(torch.device(device()))
    how, splits = HeadShape(heads, kv, head, head, 0), splits_for(sequences, kv, context)
    ms = median_ms(
        lambda: attend(how, seen, q, out, keys, values, None, None, scratch, op, tile_tokens=1, splits=splits)
    )
    order = table.long().view(sequences, blocks)
    k, v = (each[order].permute(0, 2, 1, 3, 4).reshape(sequences, kv, context, head) for each in (keys, values))
    asked = q.view(sequences, heads, 1, head)
    error = error_of(out[:1], exact_attention(asked[:1], k[:1], v[:1]).reshape(1, -1))
    share = (keys.nbytes + values.nbytes) / ms * 1e3 / top["copy"]
    point = f"attention {sequences} x {context}"
    report.add(point, ms * 1e3, "us", share=share, of="copy", note=f"error {error:.1e}, {splits} splits")
    attention_peers(report, point, asked, k, v, (keys, values, order), ms)


def exact_attention(q: Any, k: Any, v: Any) -> Any:
    """q [sequences, heads, 1, head], k and v [sequences, kv_heads, context, head], in float64."""
    import torch

    sequences, heads, _, head = q.shape
    grouped = q.double().view(sequences, k.shape[1], heads // k.shape[1], head)
    weights = torch.softmax(grouped @ k.double().transpose(2, 3) * head**-0.5, dim=3)
    return (weights @ v.double()).view(sequences, heads, 1, head)


def sampling(report: Report) -> None:
    import torch

    from tokenworks.kernels.cuda.sampling.sample import sample

    logits = torch.randn(64, 128256, device=device()) * 3
    full = [torch.full((64,), value, device=device()) for value in (0.8, 0.95, 0.02, 0.4)]
    top_k, out = (torch.full((64,), fill, device=device(), dtype=torch.int32) for fill in (50, 0))
    ms = median_ms(lambda: sample(logits, full[0], top_k, full[1], full[2], full[3], out))
    report.add("sampling 64 rows of 128256", ms * 1e3, "us")
