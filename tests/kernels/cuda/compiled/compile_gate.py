"""What Triton's compiler makes of the kernels that the product launches, without a GPU.

`recorded` gathers launches instead of running them, so that exactly what the product would launch, with its own tile
sizes, is compiled; tensors may be on the "meta" device, and so of any size. `compiled` compiles one for a chip with the
tools in Triton's wheel, and reads registers, stack and instructions out of the machine code.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
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

SHARED_BYTES = {90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""That one program may have (CUDA C++ Programming Guide, technical specifications)."""

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

    ptx: str
    cubin: bytes
    shared_bytes: int

    @cached_property
    def registers(self) -> int:
        return self._used("REG")

    @cached_property
    def stack_bytes(self) -> int:
        return self._used("STACK")

    @cached_property
    def _usage(self) -> str:
        return _dump("-res-usage", self.cubin)

    def _used(self, what: str) -> int:
        found = re.search(rf"{what}:(\d+)", self._usage)
        assert found is not None, self._usage
        return int(found[1])

    @cached_property
    def instructions(self) -> list[tuple[int, str, str]]:
        """Address, name with its modifiers, and operands of each. Takes as long as compiling does."""
        return [(int(at, 16), name, rest.strip()) for at, name, rest in INSTRUCTION.findall(_dump("-sass", self.cubin))]

    def count(self, name: str) -> int:
        """Instructions of that name, whatever their modifiers."""
        return sum(each.split(".")[0] == name for _, each, _ in self.instructions)

    @property
    def wide_products(self) -> int:
        """Of a whole warp group, HGMMA and QGMMA in the machine code."""
        return self.ptx.count("wgmma.mma_async")

    @property
    def narrow_products(self) -> int:
        """Of one warp, HMMA in the machine code."""
        return self.ptx.count("mma.sync.aligned.m16n8")

    @property
    def async_copies(self) -> int:
        """To shared memory, past the registers: LDGSTS in the machine code."""
        return len(re.findall(r"cp\.async\.c[ag]\.", self.ptx))

    @property
    def spills(self) -> int:
        """Reads and writes of local memory, which lies on the stack: registers that did not suffice."""
        return self.count("LDL") + self.count("STL") if self.stack_bytes else 0

    @property
    def traps(self) -> bool:
        """The compiler gave up without saying so: the code does nothing but trap (seen on sm_100)."""
        return "ret;" not in self.ptx

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
    return Machine(made.asm["ptx"], made.asm["cubin"], made.metadata.shared)


def _dump(what: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assert_compiles(launch: Launch, chips: Sequence[int] = (90,)) -> Machine:
    """Compiles for all `chips`; on Hopper nothing may spill. Gives the first one's code."""
    first, *_ = (_passing(launch, chip) for chip in chips)
    return first


def _passing(launch: Launch, chip: int) -> Machine:
    machine = compiled(launch, chip)
    said = f"{launch.name} on sm_{chip}:"
    assert not machine.traps, f"{said} nothing but a trap"
    assert machine.shared_bytes <= SHARED_BYTES[chip], f"{said} {machine.shared_bytes} bytes of shared memory"
    assert chip != 90 or machine.spills == 0, f"{said} {machine.spills} spills, {machine.registers} registers"
    return machine
