"""The shim makes the interpreter's small floats right; without it they are wrong still (else it can go)."""

from collections.abc import Callable, Iterator

import interpreter_shim
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder


@triton.jit
def arithmetic(x, y, out, count: tl.constexpr):
    at = tl.arange(0, count)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, a * b + a - b)
    tl.store(out + count + at, tl.where(a > b, a, b))
    tl.store(out + 2 * count + at, tl.abs(a))
    tl.store(out + 3 * count + at, tl.clamp(a, b, b + 1))
    tl.store(out + 4 * count + at, tl.fma(a, b, a))
    tl.store(out + 5 * count + at, tl.full((count,), 1.5, tl.bfloat16))


@triton.jit
def product(x, y, out, size: tl.constexpr):
    rows, columns = tl.arange(0, size)[:, None] * size, tl.arange(0, size)[None, :]
    tl.store(out + rows + columns, tl.dot(tl.load(x + rows + columns), tl.load(y + rows + columns)))


@triton.jit
def copy(x, out, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(out + at, tl.load(x + at).to(out.dtype.element_ty))


@triton.jit
def total(x, out, count: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, count)), 0))


@pytest.fixture
def bare() -> Iterator[None]:
    """The interpreter as Triton ships it."""
    names = {name: vars(InterpreterBuilder).get(name) for name in vars(interpreter_shim.Right) if name[0] != "_"}
    for name, method in interpreter_shim.Right.original.items():
        setattr(InterpreterBuilder, name, method)
    yield
    for name, method in names.items():
        if method is not None:
            setattr(InterpreterBuilder, name, method)


def normal(count: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(count).standard_normal(count).astype(np.float32)).to(dtype)


def odd_floats() -> torch.Tensor:
    """float32 of all magnitudes that FP8 has, ties, what overflows, and the special ones."""
    rng = np.random.default_rng(3)
    spread = rng.standard_normal(1008) * np.exp2(rng.integers(-12, 18, 1008))
    special = [0.0, -0.0, 448, 464, 480, 1e9, -1e9, np.inf, -np.inf, np.nan, 17, 18, 19, 2**-9, 2**-10, 3 * 2**-10]
    return torch.tensor(np.concatenate([spread, special]), dtype=torch.float32)


def by_torch_arithmetic(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    fused = (a.double() * b.double() + a.double()).to(torch.bfloat16)
    return [a * b + a - b, torch.maximum(a, b), a.abs(), torch.clamp(a, b, b + 1), fused, torch.full_like(a, 1.5)]


def test_bfloat16_arithmetic_rounds_as_torch_does() -> None:
    a, b, out = normal(128), normal(64).repeat(2), torch.empty(6 * 128, dtype=torch.bfloat16)
    arithmetic[(1,)](a, b, out, 128)
    for got, wanted in zip(out.reshape(6, 128), by_torch_arithmetic(a, b), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_dot_is_that_of_the_numbers(dtype: torch.dtype) -> None:
    x, y = normal(1024).to(dtype).reshape(32, 32), normal(1024).flip(0).to(dtype).reshape(32, 32)
    out = torch.empty(32, 32, dtype=torch.float32)
    product[(1,)](x, y, out, 32)
    torch.testing.assert_close(out.double(), x.double() @ y.double(), rtol=1e-6, atol=1e-5)


def test_dot_of_float32_is_of_tf32_where_nothing_is_said() -> None:
    x, y, out = *normal(512, torch.float32).view(2, 16, 16), torch.empty(16, 16)
    product[(1,)](x, y, out, 16)
    cut = [(each.view(torch.int32) & -(1 << 13)).view(torch.float32).double() for each in (x, y)]
    torch.testing.assert_close(out.double(), cut[0] @ cut[1], rtol=1e-6, atol=1e-5)
    assert (out.double() - x.double() @ y.double()).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_casts_round_to_the_nearest_and_saturate(dtype: torch.dtype) -> None:
    x = odd_floats()
    out = torch.empty(len(x), dtype=dtype)
    copy[(1,)](x, out, len(x))
    limit = float("inf") if dtype == torch.bfloat16 else torch.finfo(dtype).max
    torch.testing.assert_close(out.float(), x.clamp(-limit, limit).to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
def test_every_small_float_widens_exactly(dtype: torch.dtype, target: torch.dtype) -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    if dtype == torch.bfloat16:
        bits = (bits.to(torch.int32) * 251 % 65536).to(torch.uint16)
    x = bits.view(dtype)
    out = torch.empty(256, dtype=target)
    copy[(1,)](x, out, 256)
    torch.testing.assert_close(out, x.to(target), rtol=0, atol=0, equal_nan=True)


def test_whole_numbers_and_bfloat16_become_one_another() -> None:
    numbers = torch.arange(-128, 128, dtype=torch.int32)
    floats, back = torch.empty(256, dtype=torch.bfloat16), torch.empty(256, dtype=torch.int32)
    copy[(1,)](numbers, floats, 256)
    copy[(1,)](floats, back, 256)
    torch.testing.assert_close(back, numbers)
    assert floats[0] == -128


def test_reductions_of_bfloat16_are_refused() -> None:
    with pytest.raises(Exception, match="cast to float32 first"):
        total[(1,)](normal(64), torch.empty(1, dtype=torch.bfloat16), 64)


def wrong_arithmetic() -> bool:
    a, b, out = normal(128), normal(64).repeat(2), torch.empty(128, dtype=torch.bfloat16)
    sum_of[(1,)](a, b, out, 128)
    return not torch.equal(out, a + b)


@triton.jit
def sum_of(x, y, out, count: tl.constexpr):
    at = tl.arange(0, count)
    tl.store(out + at, tl.load(x + at) + tl.load(y + at))


def wrong_dot() -> bool:
    x, out = normal(1024).reshape(32, 32), torch.empty(32, 32, dtype=torch.float32)
    product[(1,)](x, x, out, 32)
    return not torch.allclose(out, x.float() @ x.float(), rtol=1e-3, atol=1e-3)


def wrong_cast(dtype: torch.dtype) -> bool:
    x = normal(1024, torch.float32)
    out = torch.empty(1024, dtype=dtype)
    copy[(1,)](x, out, 1024)
    return not torch.equal(out.float(), x.to(dtype).float())


@pytest.mark.parametrize(
    "wrong",
    [wrong_arithmetic, wrong_dot, lambda: wrong_cast(torch.bfloat16), lambda: wrong_cast(torch.float8_e4m3fn)],
    ids=["arithmetic", "dot", "bfloat16 cast", "float8 cast"],
)
def test_without_the_shim_it_is_wrong_still(bare: None, wrong: Callable[[], bool]) -> None:
    """When one of these fails Triton has mended its interpreter, and the shim's part for it can go."""
    assert wrong()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_with_the_shim_the_same_is_right(dtype: torch.dtype) -> None:
    assert not wrong_arithmetic()
    assert not wrong_dot()
    assert not wrong_cast(dtype)


@triton.jit
def halves(x, y, z, out, count: tl.constexpr, assembly: tl.constexpr):
    at = tl.arange(0, count)
    args = [tl.load(x + at), tl.load(y + at), tl.load(z + at)]
    tl.store(out + at, tl.inline_asm_elementwise(assembly, "=r,r,r,r", args, tl.bfloat16, is_pure=True, pack=2))


def test_inline_assembly_multiplies_and_adds_with_one_rounding_subnormals_too() -> None:
    x = torch.cat((torch.arange(256).to(torch.int16).view(torch.bfloat16), normal(256)))
    y = torch.cat((normal(256) * 2.0**118, normal(256)))
    z = normal(512)
    out = torch.empty(512, dtype=torch.bfloat16)
    halves[(1,)](x, y, z, out, 512, "fma.rn.bf16x2 $0, $1, $2, $3;")
    exact = x.double() * y.double() + z.double()
    spacing = torch.finfo(torch.bfloat16).eps * torch.exp2(torch.floor(torch.log2(exact.abs())))
    assert ((out.double() - exact).abs() <= spacing / 2).all()
    assert (out[:128] != z[:128]).any()


def test_inline_assembly_moves_bits() -> None:
    x, zero = torch.arange(-32, 32).to(torch.int16).view(torch.bfloat16), torch.zeros(64, dtype=torch.bfloat16)
    out = torch.empty(64, dtype=torch.bfloat16)
    swap = "{ .reg .b32 t; .reg .b16 l, h; mov.b32 {l, h}, $1; mov.b32 t, {h, l}; and.b32 $0, t, 0x00FF00FF; }"
    halves[(1,)](x, zero, zero, out, 64, swap)
    wanted = x.view(torch.int16).reshape(-1, 2).flip(1).reshape(-1) & 0xFF
    torch.testing.assert_close(out.view(torch.int16), wanted)
