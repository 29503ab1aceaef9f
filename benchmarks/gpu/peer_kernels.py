"""What others' kernels make of the same work. One that is not there, or fails, is reported and left out."""

import importlib.util
from collections.abc import Callable
from typing import Any

from measure import Report, error_of, median_ms


def attention_peers(report: Report, point: str, q: Any, k: Any, v: Any, paged: tuple[Any, Any, Any], ms: float) -> None:
    """Decodes: q [sequences, heads, 1, head]; k, v [sequences, kv_heads, context, head], contiguous as torch's want
    them; paged: the same as (keys, values) by blocks, and their order. `ms`: ours."""
    import torch

    wanted = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=True)
    found: dict[str, float] = {}

    def tried(name: str, make: Callable[[], Callable[[], Any]]) -> None:
        call = make()
        assert (error := error_of(call().reshape(wanted.shape), wanted)) < 0.02, f"wrong: {error:.1e}"
        found[name] = median_ms(call)

    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        **{name: lambda name=name: _sdpa(name, q, k, v) for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION")},
        "EFFICIENT_ATTENTION": lambda: _sdpa("EFFICIENT_ATTENTION", q, *(_by_heads(each, q) for each in (k, v))),
        "flex": lambda: _flex(q, k, v),
        "FlashInfer": lambda: _flashinfer(q, *paged),
    }
    for name, make in makers.items():
        report.attempt(f"{name}, {point}", lambda name=name, make=make: tried(name, make))
    if found:
        best = min(found, key=lambda name: found[name])
        every = ", ".join(f"{name} {theirs * 1e3:.0f} us" for name, theirs in found.items())
        report.add(f"best peer, {point}", found[best] * 1e3, "us", note=f"ours is {found[best] / ms:.2f}x; {every}")


def _by_heads(each: Any, q: Any) -> Any:
    return each.repeat_interleave(q.shape[1] // each.shape[1], dim=1)


def _sdpa(backend: str, q: Any, k: Any, v: Any) -> Callable[[], Any]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call() -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            grouped = q.shape[1] != k.shape[1]
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)

    return call


def _flex(q: Any, k: Any, v: Any) -> Callable[[], Any]:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, fullgraph=True)
    return lambda: compiled(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def _flashinfer(q: Any, keys: Any, values: Any, order: Any) -> Callable[[], Any]:
    """On the same blocks as ours."""
    import torch

    flashinfer = importlib.import_module("flashinfer")
    (sequences, heads, _, head), (_, kv, block, _) = q.shape, keys.shape
    memory = torch.empty(256 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(memory, "HND", use_tensor_cores=True)
    starts = torch.arange(sequences + 1, dtype=torch.int32, device=q.device) * order.shape[1]
    last = torch.full((sequences,), block, dtype=torch.int32, device=q.device)
    wrapper.plan(
        starts, order.reshape(-1).int(), last, heads, kv, head, block,
        q_data_type=q.dtype, kv_data_type=keys.dtype,
    )  # fmt: skip
    rows = q.reshape(sequences, heads, head)
    return lambda: wrapper.run(rows, (keys, values))


def humming(report: Report, name: str, x: Any, n: int, count: int, ms: float) -> None:
    """The same product of NVFP4 weights by humming-kernels. `count` matrices are gone through; `ms`: ours."""
    import torch

    if importlib.util.find_spec("humming") is None:
        raise ModuleNotFoundError("humming-kernels is not installed")
    made = importlib.import_module("humming.layer").HummingLayer
    rows, k = x.shape
    layers = []
    for _ in range(count):
        layer = made(n, k, {"quant_method": "modelopt", "quant_algo": "nvfp4"}, torch_dtype=torch.bfloat16).cuda()
        scales = torch.rand(n, k // 16, device="cuda") + 0.5
        layer.load_from_tensors(
            {
                "weight": torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda"),
                "weight_scale": scales.to(torch.float8_e4m3fn),
                "weight_scale_2": torch.full((1,), 0.02, device="cuda"),
            }
        )
        layer.transform()
        layers.append(layer)
    assert torch.isfinite(layers[0](x)).all()
    theirs = median_ms(lambda: [layer(x) for layer in layers]) / count
    report.add(f"humming {name} {rows}", theirs * 1e3, "us", note=f"ours is {theirs / ms:.2f}x")
