"""What the compiler makes of the backend's own kernels, launched as an 8B model's step launches them."""

from collections.abc import Callable

import pytest

pytest.importorskip("triton")

import torch
from compile_gate import CHIPS, Machine, compiled, launches_of

from tokenworks.kernels.cuda.attention import Seen, Shape, attend
from tokenworks.kernels.cuda.experts import ExpertWeights, _launch
from tokenworks.kernels.cuda.finish import Finish, Gated, Scratch
from tokenworks.kernels.cuda.norm import Groups, norm
from tokenworks.kernels.cuda.pairs import Blocks
from tokenworks.kernels.cuda.place import HeadPart, Places, Rotation, place
from tokenworks.kernels.cuda.products import skinny
from tokenworks.kernels.cuda.recurrent import States, delta_rule, selective_scan, short_convolution
from tokenworks.kernels.cuda.rows import gather
from tokenworks.kernels.program import Attend, Value

WIDTH, INNER, QKV = 4096, 14336, 6144
NOWHERE = Value(0, 0, 1, 1)


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def numbers(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.float32)


def whole(*shape: int) -> torch.Tensor:
    return empty(*shape, dtype=torch.int32)


def machines(call: Callable[[], object], chips: tuple[int, ...] = (90,)) -> list[Machine]:
    """Of the only launch; nothing spills on Hopper."""
    (launch,) = launches_of(call)
    found = [compiled(launch, chip) for chip in chips]
    assert found[0].spills == 0, f"{found[0].spills} spills, {found[0].registers} registers"
    return found


@pytest.mark.parametrize("rows", [1, 32])
def test_skinny_products_stream_weights_through_the_wide_tensor_cores(rows: int) -> None:
    scratch = Scratch(torch.device("meta"))
    gate = Finish(empty(rows, INNER), scratch, gate=Gated("silu", 0.0, 0.0))
    down = Finish(numbers(rows, WIDTH), scratch, residual=numbers(rows, WIDTH))
    for call in (
        lambda: skinny(empty(rows, WIDTH), empty(2 * INNER, WIDTH), gate),
        lambda: skinny(empty(rows, INNER), empty(WIDTH, INNER), down),
    ):
        hopper, *_ = machines(call, CHIPS if rows == 32 else (90,))
        assert hopper.count("HGMMA") > 0
        assert hopper.count("LDGSTS") >= 16, "weights come ahead of the products, past the registers"
        assert hopper.shared_bytes <= 113 * 1024, "two programs on a multiprocessor"


def attention(
    head: int, group: int, splits: int, cache: torch.dtype, *, latent: int = 0, prompt: bool = False
) -> Callable[[], object]:
    kv_heads = 1 if latent else 8
    heads = kv_heads * group
    op = Attend(NOWHERE, NOWHERE, NOWHERE, NOWHERE, 0, heads, kv_heads, head, 0.1, 0, 0.0, latent=latent)
    shape = Shape(heads, kv_heads, head, op.value_size, head - latent if latent else 0)
    seen = Seen(whole(8), whole(8), whole(8), None, None, whole(65536), whole(4))
    keys = empty(100, kv_heads, 16, head, dtype=cache)
    given = (shape, seen, empty(8, heads * head), empty(8, heads * op.value_size), keys, keys, None)
    tiles, tokens = (whole(9, 2), shape.tile_tokens) if prompt else (None, 1)
    scratch = Scratch(torch.device("meta"))
    return lambda: attend(*given, tiles, scratch, op, tile_tokens=tokens, splits=splits)


@pytest.mark.parametrize("cache", [torch.bfloat16, torch.float8_e4m3fn])
def test_decoding_attention(cache: torch.dtype) -> None:
    hopper, *_ = machines(attention(128, 4, 8, cache), CHIPS if cache == torch.bfloat16 else (90,))
    assert hopper.count("HMMA") > 0
    assert hopper.count("LDGSTS") >= 16


def test_prompts_attention_fills_the_wide_tensor_cores() -> None:
    hopper, *_ = machines(attention(128, 4, 1, torch.bfloat16, prompt=True), CHIPS)
    assert hopper.count("HGMMA") > 0


@pytest.mark.parametrize(("head", "group", "latent"), [(96, 8, 0), (256, 4, 0), (576, 128, 512)])
def test_other_heads(head: int, group: int, latent: int) -> None:
    machines(attention(head, group, 8, torch.bfloat16, latent=latent))


def test_rows() -> None:
    machines(lambda: norm(numbers(8, WIDTH), empty(8, WIDTH), numbers(WIDTH), None, Groups(WIDTH, False, 1e-5)))
    machines(lambda: gather(empty(128256, WIDTH), whole(8), numbers(8, WIDTH)))
    places = Places(whole(8), whole(8), whole(65536), whole(4), None)
    qkv, keys, weight = empty(8, QKV), empty(100, 8, 16, 128), numbers(128)
    q, k = (HeadPart(qkv[:, at : at + width], weight, 1e-5, True, True) for at, width in ((0, 4096), (4096, 1024)))
    v, rotation = HeadPart(qkv[:, 5120:]), Rotation(numbers(64), 1.0, None)
    machines(lambda: place(128, places, rotation, q, qkv[:, :4096], k, v, keys, keys), CHIPS)


@pytest.mark.parametrize("height", [16, 64])
def test_experts(height: int) -> None:
    blocks = Blocks(height, whole(16 * height), whole(16))
    weights = ExpertWeights(whole(64), empty(64, 2 * 1408, 2048), empty(64, 2048, 1408), None, None, True)
    x, made = empty(8, 2048), empty(48, 1408)
    how = ("gate", "silu", 0.0, 0.0)
    (hopper,) = machines(lambda: _launch(x, weights.up, None, made, blocks, None, 6, 1408, how))
    assert hopper.count("HGMMA") > 0


def test_states() -> None:
    where = (whole(9), whole(8), whole(9), whole(8), whole(8))
    conv = States(numbers(64, 3 * 8192), *where)
    machines(
        lambda: short_convolution(conv, numbers(8, 8192), numbers(8, 8192), numbers(8192, 4), None, activated=True)
    )
    x, heads = numbers(8, 32 * 128), numbers(32)
    rule = States(numbers(64, 32 * 128 * 128), *where)
    qk, narrow = numbers(8, 16 * 128), numbers(8, 32)
    how = {"key_heads": 16, "alternating": False}
    machines(lambda: delta_rule(rule, x, qk, qk, x, narrow, narrow, heads, heads, **how))
    scan = States(numbers(64, 64 * 128 * 64), *where)
    x, heads, narrow, bc = numbers(8, 64 * 64), numbers(64), numbers(8, 64), numbers(8, 8 * 128)
    machines(lambda: selective_scan(scan, x, x, bc, bc, narrow, heads, heads, heads, groups=8, step_range=(0.0, 9.0)))
