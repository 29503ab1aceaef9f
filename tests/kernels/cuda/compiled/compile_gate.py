"""What Triton's compiler makes of the kernels that the product launches, without a GPU.

`recorded` gathers launches instead of running them, so that exactly what the product would launch, with its own tile
sizes, is compiled; tensors may be on the "meta" device, and so of any size. `compiled` compiles one for a chip with the
tools in Triton's wheel, and reads registers, stack and instructions out of the machine code.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

CHIPS = (90, 100, 120)
"""Compute capabilities: Hopper, and Blackwell of the data centre and of the desk."""

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);", re.MULTILINE)


@dataclass(frozen=True)
class Launch:
    kernel: JITFunction[Any]
    grid: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Machine:
    """A kernel's machine code."""

    sass: str
    registers: int
    stack_bytes: int
    shared_bytes: int

    @cached_property
    def instructions(self) -> list[tuple[int, str, str]]:
        """Address, name with its modifiers, and operands of each."""
        return [(int(at, 16), name, rest.strip()) for at, name, rest in INSTRUCTION.findall(self.sass)]

    def count(self, name: str) -> int:
        """Instructions of that name, whatever their modifiers."""
        return sum(each.split(".")[0] == name for _, each, _ in self.instructions)

    @property
    def spills(self) -> int:
        """Reads and writes of local memory: registers that did not suffice."""
        return self.count("LDL") + self.count("STL")

    def loop(self, holding: str) -> list[str]:
        """Names of the instructions of the smallest loop that holds one of that name; empty if there is none."""
        found: list[str] = []
        for at, name, rest in self.instructions:
            target = re.search(r"0x([0-9a-f]+)$", rest)
            if not name.startswith("BRA") or target is None or int(target[1], 16) >= at:
                continue
            body = [each for where, each, _ in self.instructions if int(target[1], 16) <= where <= at]
            if any(each.split(".")[0] == holding for each in body) and (not found or len(body) < len(found)):
                found = body
        return found


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Kernels launched in this block are not run, but gathered."""
    launches: list[Launch] = []
    before = JITFunction.run

    def run(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append(Launch(self, grid, args, options))

    JITFunction.run = run
    try:
        yield launches
    finally:
        JITFunction.run = before


def launches_of(call: Callable[[], object]) -> list[Launch]:
    with recorded() as launches:
        call()
    return launches


def compiled(launch: Launch, chip: int) -> Machine:
    """Specialised as a launch specialises: on arguments of 1, and on what divides by 16."""
    kernel, target = launch.kernel, GPUTarget("cuda", chip, 32)
    backend = make_backend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialised, given = binder(*launch.args, **launch.options)
    options, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialised, given)
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=target, options=options.__dict__)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return Machine(sass, registers, stack, made.metadata.shared)


def assert_compiles_everywhere(launch: Launch) -> Machine:
    """Compiles for all chips; on Hopper nothing may spill. Gives Hopper's code."""
    hopper, *_ = (passing(launch, chip) for chip in CHIPS)
    return hopper


def passing(launch: Launch, chip: int) -> Machine:
    machine = compiled(launch, chip)
    said = f"{launch.name} spills on sm_{chip}: {machine.spills} accesses, {machine.registers} registers"
    assert chip != 90 or machine.spills == 0, said
    return machine
