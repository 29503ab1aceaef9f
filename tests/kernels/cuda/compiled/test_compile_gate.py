"""The gate sees what it is there for: tensor-core instructions, asynchronous copies, spills, loops."""

import pytest

pytest.importorskip("triton")

import torch
import triton
import triton.language as tl
from compile_gate import CHIPS, Launch, assert_compiles, compiled, launches_of


@triton.jit
def product(x, y, out, depth, rows: tl.constexpr, columns: tl.constexpr, step: tl.constexpr):
    m, n, k = tl.arange(0, rows), tl.arange(0, columns), tl.arange(0, step)
    sums = tl.zeros((rows, columns), tl.float32)
    for at in range(0, depth, step):
        a = tl.load(x + m[:, None] * depth + (at + k)[None, :])
        b = tl.load(y + n[:, None] * depth + (at + k)[None, :])
        sums += tl.dot(a, b.T)
    tl.store(out + m[:, None] * columns + n[None, :], sums)


def launch(dtype: torch.dtype, rows: int, columns: int, step: int, warps: int) -> Launch:
    def call() -> None:
        x = torch.empty(rows, 4096, dtype=dtype, device="meta")
        y = torch.empty(columns, 4096, dtype=dtype, device="meta")
        out = torch.empty(rows, columns, dtype=torch.float32, device="meta")
        product[(1,)](x, y, out, 4096, rows, columns, step, num_warps=warps, num_stages=3)

    (only,) = launches_of(call)
    return only


def test_wide_tiles_use_the_warp_groups_tensor_cores_and_asynchronous_copies() -> None:
    machine = assert_compiles(launch(torch.bfloat16, 64, 64, 64, 4))
    assert machine.count("HGMMA") == machine.wide_products > 0
    assert machine.count("LDGSTS") == machine.async_copies > 0
    assert machine.shared_bytes >= 2 * (64 + 64) * 64 * 2
    assert "HGMMA" in {name.split(".")[0] for name in machine.loop("HGMMA")}
    assert len(machine.loop("HGMMA")) < len(machine.instructions)


def test_fp8_uses_its_own_tensor_cores() -> None:
    assert compiled(launch(torch.float8_e4m3fn, 64, 64, 64, 4), 90).count("QGMMA") > 0


def test_narrow_tiles_use_the_warps_tensor_cores() -> None:
    machine = compiled(launch(torch.bfloat16, 16, 32, 64, 4), 90)
    assert machine.count("HMMA") == machine.narrow_products > 0
    assert machine.count("HGMMA") == machine.wide_products == 0


def test_too_much_shared_memory_is_seen() -> None:
    with pytest.raises(AssertionError, match="product on sm_120: 131072 bytes of shared memory"):
        assert_compiles(launch(torch.bfloat16, 128, 128, 128, 8), [120])


def test_spills_are_seen() -> None:
    machine = compiled(launch(torch.bfloat16, 64, 128, 16, 1), CHIPS[0])
    assert machine.spills > 0
    assert machine.stack_bytes > 0
    with pytest.raises(AssertionError, match=r"product on sm_90: \d+ spills"):
        assert_compiles(launch(torch.bfloat16, 64, 128, 16, 1))
