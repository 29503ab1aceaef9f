"""Whatever steps launch has been compiled before, by threads, without a launch: with a driver that launches nothing."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from tokenworks.kernels.adapter import LowRank
from tokenworks.kernels.backend import Limits, RowChange, SampleBatch
from tokenworks.kernels.cuda.backend import CudaExecutable
from tokenworks.kernels.cuda.compiling import compiling
from tokenworks.kernels.cuda.sampling.logits import DeviceLogits
from tokenworks.kernels.cuda.warming import empty_step
from tokenworks.kernels.formats import tensor_bytes
from tokenworks.kernels.program import Linear, Program, ProgramBuilder
from tokenworks.kernels.tensor import Tensor

CPU = torch.device("cpu")


class Chip:
    """Stands in for a driver: says that it is a Hopper chip, and notes who builds and who launches."""

    numbers = iter(range(100, 200))

    def __init__(self) -> None:
        self.number = next(self.numbers)  # kernels are kept by device
        self.built_by: list[str] = []
        self.launched: list[str] = []
        self.utils = SimpleNamespace(
            load_binary=lambda name, *_: (name, name, 32, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        self.built_by.append(threading.current_thread().name)
        return lambda *given: self.launched.append(source.fn.__name__)


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chip]:
    made = Chip()
    monkeypatch.setattr(driver, "_active", made)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    yield made


@triton.jit
def doubled(x, out, count, width: tl.constexpr):
    at = tl.program_id(0) * width + tl.arange(0, width)
    tl.store(out + at, 2 * tl.load(x + at, mask=at < count), mask=at < count)


def test_kernels_are_ready_when_the_block_ends(chip: Chip, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x = torch.zeros(64)
    with compiling(threads=2):
        for size in (16, 32, 16, 32):
            doubled[(4,)](x, x, 64, width=size)
    assert chip.launched == []
    assert len(chip.built_by) == 2
    assert all(name.startswith("kernels") for name in chip.built_by)
    monkeypatch.setattr(triton.compiler, "compile", None)  # and nothing is compiled again
    doubled[(4,)](x, x, 64, width=16)
    doubled[(4,)](x, x, 64, width=32)
    assert chip.launched == ["doubled", "doubled"]
    assert len(chip.built_by) == 2


def test_what_does_not_compile_says_so_where_it_is_launched(chip: Chip) -> None:
    @triton.jit
    def wrong(x, width: tl.constexpr):
        tl.store(x + tl.arange(0, width), nowhere)  # noqa: F821

    with compiling(threads=2):
        wrong[(1,)](torch.zeros(4), width=4)
    with pytest.raises(triton.CompilationError):
        wrong[(1,)](torch.zeros(4), width=4)
    assert chip.launched == []


def small_model(form: str) -> tuple[Program, dict[str, Tensor]]:
    b, weights = ProgramBuilder(), {}

    def weight(name: str, rows: int, columns: int, of: str = form) -> str:
        data = np.zeros(tensor_bytes(of, (rows, columns)), np.uint8)
        weights[name] = Tensor(name, of, (rows, columns), data)
        return name

    def vector(name: str, count: int) -> str:
        weights[name] = Tensor(name, "F32", (count,), np.ones(count, np.float32).view(np.uint8))
        return name

    x = b.embed(weight("embed", 512, 128, "BF16"), 128)
    h = b.rmsnorm(x, vector("norm", 128), 1e-5)
    qkv = b.linear(h, [weight("qkv", 256, 128)], 256)
    q, k = (b.rope(qkv.columns(at, count), 32, vector("rope", 16)) for at, count in ((0, 128), (128, 64)))
    read = b.attend(q, k, qkv.columns(192, 64), heads=4, kv_heads=2, head_size=32, scale=0.2)
    x = b.add(x, b.linear(read, [weight("o", 128, 128)], 128))
    h = b.rmsnorm(x, "norm", 1e-5)
    both = b.linear(h, [weight("gate", 256, 128), weight("up", 256, 128)], 512)
    h = b.gate(both.columns(0, 256), both.columns(256, 256), "silu")
    x = b.add(x, b.linear(h, [weight("down", 128, 256)], 128))
    h = b.rmsnorm(b.select_rows(x), "norm", 1e-5)
    return b.finish(b.linear(h, [weight("head", 512, 128)], 512)), weights


def adaptation(program: Program, weights: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Of rank 4, of every product."""
    names = {name for each in program.instructions if isinstance(each, Linear) for name in each.weights}

    def zeros(*shape: int) -> Tensor:
        return Tensor("side", "F32", shape, np.zeros(4 * shape[0] * shape[1], np.uint8))

    return {name: LowRank(zeros(4, weights[name].shape[1]), zeros(weights[name].shape[0], 4), 1.0) for name in names}


@pytest.mark.parametrize("form", ["BF16", "NVFP4"])
def test_no_step_meets_a_kernel_that_is_not_there(form: str, chip: Chip, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compile_(source: Any, **given: object) -> SimpleNamespace:
        compiled.append(source)
        return SimpleNamespace(run=lambda *_: None, launch_metadata=lambda *_: None, function=0, packed_metadata=0)

    monkeypatch.setattr(triton.compiler, "compile", compile_)
    limits = Limits(512, 48, 48, 256, 16, "bfloat16", 2)
    program, weights = small_model(form)
    executable = CudaExecutable(program, weights, limits, CPU)
    assert compiled == [], "nothing is launched before"
    executable._compile_kernels()
    before = len(compiled)
    assert 15 < before < 60
    rng = np.random.default_rng(1)
    for _ in range(40):
        lengths = [1] * int(rng.integers(0, 40)) + rng.integers(1, 230, int(rng.integers(0, 3))).tolist()
        if lengths and sum(lengths) <= 512:
            rng.shuffle(lengths)
            executable._run(executable._main, empty_step(lengths))
            some = np.zeros(len(lengths), np.float32)
            logits = DeviceLogits(torch.zeros(len(lengths), 512))
            executable.adjust(logits, [RowChange(0, some[:3].view(np.int32), some[:3], some[:3], None)])
            executable.sample(logits, SampleBatch(some, some.view(np.int32), some, some, some))
            executable.logprobs(logits, some.view(np.int32), int(rng.integers(0, 21)))
    assert len(compiled) == before, {source.fn.__name__ for source in compiled[before:]}
    executable.load_adapter(1, adaptation(program, weights))
    executable._compile_adapters_kernels(1)
    with_adapters = len(compiled)
    assert before < with_adapters < before + 40
    for _ in range(20):
        lengths = [1] * int(rng.integers(0, 40)) + rng.integers(1, 230, int(rng.integers(1, 3))).tolist()
        slots = rng.choice([-1, 1], len(lengths)).astype(np.int32)
        executable._run(executable._main, replace(empty_step(lengths), adapters=slots))
    assert len(compiled) == with_adapters, {source.fn.__name__ for source in compiled[with_adapters:]}
