"""Makes Triton's interpreter compute in bfloat16 and FP8 as a GPU does. For tests only.

Triton 3.6 keeps bfloat16 as uint16 and FP8 as uint8 and computes with those whole numbers; it rounds casts to bfloat16
towards zero, and some casts to FP8 wrongly. Here operands are widened to float32, and results rounded to the nearest
(ties to even); FP8 saturates, as `cvt.rn.satfinite` does; products of float32 are of TF32 where the kernel allows it.
What is not put right is refused, so that nothing is wrong silently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ptx
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceScanOpInterface, TensorHandle

Array = np.ndarray[Any, Any]

FP8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
"""The two that NVIDIA's tensor cores have."""


def is_small(dtype: tl.dtype) -> bool:
    """Kept by the interpreter as whole numbers of the same bits."""
    return dtype == tl.bfloat16 or dtype.is_fp8()


def widened(data: Array, dtype: tl.dtype) -> Array:
    """Bits of a small float as float32: exact. Others as they are."""
    if dtype == tl.bfloat16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    if dtype in FP8:
        bits = torch.from_numpy(np.array(data, np.uint8))
        return bits.view(FP8[dtype]).to(torch.float32).numpy()
    if is_small(dtype):
        raise NotImplementedError(f"{dtype} under the interpreter")
    return data


def narrowed(data: Array, dtype: tl.dtype) -> Array:
    """float32 to a small float's bits: to the nearest, ties to even; FP8 saturates."""
    numbers = np.array(data, np.float32)
    if dtype == tl.bfloat16:
        return torch.from_numpy(numbers).to(torch.bfloat16).view(torch.uint16).numpy()
    if dtype in FP8:
        most = torch.finfo(FP8[dtype]).max
        return torch.from_numpy(np.clip(numbers, -most, most)).to(FP8[dtype]).view(torch.uint8).numpy()
    raise NotImplementedError(f"{dtype} under the interpreter")


def in_tf32(data: Array) -> Array:
    """float32 as the tensor cores read it where TF32 is allowed: the last 13 bits are not looked at."""
    return (np.ascontiguousarray(data).view(np.uint32) & 0xFFFFE000).view(np.float32)


def put(result: Array, dtype: tl.dtype) -> TensorHandle:
    """A result of widened operands; one of a comparison is of no small float."""
    return TensorHandle(result if result.dtype == bool else narrowed(result, dtype), dtype)


class Results:
    """Of inline assembly."""

    def __init__(self, bits: list[Array], types: list[Any]) -> None:
        self._handles = [
            TensorHandle(each.view(interpreter._get_np_dtype(kind)), kind.scalar)
            for each, kind in zip(bits, types, strict=True)
        ]

    def get_result(self, number: int) -> TensorHandle:
        return self._handles[number]


class Right:
    """The builder's methods that are put right; `original` is what they replace."""

    original: dict[str, Callable[..., Any]]

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Callable[..., Array]) -> TensorHandle:
        kind = lhs.dtype.scalar
        if not is_small(kind):
            return Right.original["binary_op"](self, lhs, rhs, op)
        return put(op(widened(lhs.data, kind), widened(rhs.data, rhs.dtype.scalar)), kind)

    def unary_op(self, arg: TensorHandle, op: Callable[..., Array]) -> TensorHandle:
        kind = arg.dtype.scalar
        if not is_small(kind):
            return Right.original["unary_op"](self, arg, op)
        return put(op(widened(arg.data, kind)), kind)

    def create_clampf(self, arg: TensorHandle, lo: TensorHandle, hi: TensorHandle, nans: Any) -> TensorHandle:
        kind = arg.dtype.scalar
        if not is_small(kind):
            return Right.original["create_clampf"](self, arg, lo, hi, nans)
        return put(np.clip(*(widened(each.data, kind) for each in (arg, lo, hi))), kind)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        kind = z.dtype.scalar
        if not is_small(kind):
            return Right.original["create_fma"](self, x, y, z)
        a, b, c = (widened(each.data, kind).astype(np.float64) for each in (x, y, z))
        return put(a * b + c, kind)

    def cast_impl(self, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        kind, target = src.dtype.scalar, dst_type.scalar
        if not is_small(kind) and not is_small(target):
            return Right.original["cast_impl"](self, src, dst_type)
        numbers = widened(src.data, kind)
        if is_small(target):
            return TensorHandle(narrowed(numbers, target), target)
        return TensorHandle(numbers.astype(interpreter._get_np_dtype(target)), target)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: tl.dtype, rounding_mode: Any) -> TensorHandle:
        if rounding_mode not in (None, interpreter._ir.ROUNDING_MODE.RTNE):
            raise NotImplementedError(f"rounding {rounding_mode} under the interpreter")
        return Right.cast_impl(self, src, dst_type)

    def create_dot(
        self, a: TensorHandle, b: TensorHandle, d: TensorHandle, input_precision: Any, imprecise: Any
    ) -> TensorHandle:
        if is_small(d.dtype.scalar):
            raise NotImplementedError(f"tl.dot to {d.dtype} under the interpreter")
        if a.dtype.scalar.is_int():
            return Right.original["create_dot"](self, a, b, d, input_precision, imprecise)
        x, y = (widened(each.data, each.dtype.scalar).astype(np.float32) for each in (a, b))
        if input_precision == interpreter._ir.INPUT_PRECISION.TF32:  # changes nothing of smaller floats
            x, y = in_tf32(x), in_tf32(y)
        return TensorHandle((np.matmul(x, y) + d.data).astype(d.data.dtype), d.dtype.scalar)

    def create_atomic_rmw(
        self, op: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, sem: Any, scope: Any
    ) -> TensorHandle:
        if is_small(val.dtype.scalar):
            raise NotImplementedError(f"atomics on {val.dtype} under the interpreter")
        return Right.original["create_atomic_rmw"](self, op, ptr, val, mask, sem, scope)

    def create_inline_asm(
        self, assembly: str, constraints: str, values: list[TensorHandle], types: list[Any], pure: bool, pack: int
    ) -> "Results":
        return Results(ptx.run(assembly, constraints, [value.data for value in values], len(types), pack), types)

    def get_bf16(self, value: float) -> TensorHandle:
        return TensorHandle(narrowed(np.array([value]), tl.bfloat16), tl.bfloat16)


def check_tensor(self: ReduceScanOpInterface, tensors: tuple[tl.tensor, ...]) -> None:
    """Reductions and scans of small floats would be of their bits."""
    for each in tensors:
        if is_small(each.dtype.scalar):
            raise NotImplementedError(f"reductions of {each.dtype} under the interpreter: cast to float32 first")
        self.check_axis(each.shape, self.axis)


@contextmanager
def installed() -> Iterator[None]:
    """The interpreter put right, for as long as the block runs."""
    names = [name for name in vars(Right) if not name.startswith("_") and name != "original"]
    originals = {name: vars(InterpreterBuilder)[name] for name in names if name in vars(InterpreterBuilder)}
    before = ReduceScanOpInterface.check_tensor
    Right.original = originals
    for name in names:
        setattr(InterpreterBuilder, name, vars(Right)[name])
    ReduceScanOpInterface.check_tensor = check_tensor
    try:
        yield
    finally:
        for name in names:
            if name in originals:
                setattr(InterpreterBuilder, name, originals[name])
            else:
                delattr(InterpreterBuilder, name)
        ReduceScanOpInterface.check_tensor = before
