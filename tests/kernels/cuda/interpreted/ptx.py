"""Runs the PTX that kernels have as inline assembly, on arrays: what NVIDIA's "PTX ISA" says of the few instructions
that they use. Registers are uint32 arrays, b16 ones uint32 arrays below 2^16; one element for each run of the assembly.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def run(assembly: str, constraints: str, values: list[Array], outputs: int, pack: int) -> list[Array]:
    """`values` are of 16 or 32 bits, all of one shape; `pack` elements, neighbours in the last dimension, are handled
    at a time. Gives the bits of as many outputs of 16 bits."""
    shape = values[0].shape
    registers: dict[str, Array] = {}
    operands = [register for value in values for register in _registers(value, pack)]
    assert constraints.split(",") == ["=r"] * outputs + ["r"] * len(operands), "constraints do not fit the operands"
    for number, operand in enumerate(operands):
        registers[f"${outputs + number}"] = operand
    for line in assembly.strip().removeprefix("{").removesuffix("}").split(";"):
        if line.strip() and not line.strip().startswith(".reg"):
            _step(line.strip(), registers)
    assert pack == 2, "two results of 16 bits fill a register"
    found = [np.ascontiguousarray(np.broadcast_to(registers[f"${i}"], operands[0].shape)) for i in range(outputs)]
    return [each.view(np.uint16).reshape(shape) for each in found]


def _registers(value: Array, pack: int) -> list[Array]:
    """As many registers as `pack` elements fill."""
    flat = np.ascontiguousarray(value).reshape(-1, pack)
    if flat.itemsize == 4:
        return [flat[:, i].view(np.uint32) for i in range(pack)]
    assert flat.itemsize * pack == 4, f"{pack} elements of {flat.itemsize} bytes"
    return [flat.view(np.uint32)[:, 0]]


def _step(line: str, registers: dict[str, Array]) -> None:
    name, rest = line.split(None, 1)
    operands = [each.strip() for each in re.findall(r"\{[^}]*\}|[^,\s][^,]*", rest)]
    target, sources = operands[0], [_read(each, registers) for each in operands[1:]]
    result = _INSTRUCTIONS[name](*sources)
    if target.startswith("{"):
        low, high = (each.strip() for each in target.strip("{}").split(","))
        registers[low], registers[high] = result & np.uint32(0xFFFF), result >> np.uint32(16)
    else:
        registers[target] = result


def _read(operand: str, registers: dict[str, Array]) -> Array:
    if operand.startswith("{"):
        low, high = (registers[each.strip()] for each in operand.strip("{}").split(","))
        return low | high << np.uint32(16)
    if operand in registers:
        return registers[operand]
    return np.array([int(operand, 0)], np.uint32)


def _by_halves(function: Callable[..., Array]) -> Callable[..., Array]:
    """Of bfloat16 numbers as float64, rounded to bfloat16 at last: once, for these functions of one or two operations
    are exact in float64, or nearly so, and torch rounds float64 through float32, whose ties are told apart below."""

    def both(*registers: Array) -> Array:
        halves = []
        for shift in (0, 16):
            numbers = [((each >> np.uint32(shift)) << np.uint32(16)).view(np.float32) for each in registers]
            exact = function(*(each.astype(np.float64) for each in numbers))
            halves.append(_rounded(exact))
        return halves[0] | halves[1] << np.uint32(16)

    return both


def _rounded(exact: Array) -> Array:
    """float64 to bfloat16's bits, to the nearest, ties to even. First to float32 by rounding to odd, which leaves no
    tie that was none."""
    near = exact.astype(np.float32)
    bits = near.view(np.uint32).copy()
    away = np.abs(near.astype(np.float64)) > np.abs(exact)
    bits[away] -= 1
    bits[near.astype(np.float64) != exact] |= 1
    rounded = torch.from_numpy(bits.view(np.float32)).to(torch.bfloat16).view(torch.uint16).numpy()
    return rounded.astype(np.uint32)


_INSTRUCTIONS: dict[str, Callable[..., Array]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "shl.b32": lambda a, b: a << b,
    "shr.b32": lambda a, b: a >> b,
    "sub.u32": lambda a, b: a - b,
    "mad.lo.u32": lambda a, b, c: a * b + c,
    "neg.bf16x2": lambda a: a ^ np.uint32(0x80008000),
    "mul.rn.bf16x2": _by_halves(lambda a, b: a * b),
    "fma.rn.bf16x2": _by_halves(lambda a, b, c: a * b + c),
}
