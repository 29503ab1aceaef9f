"""The CPU backend's edges: weights it refuses, steps it refuses, memory it shares and gives back."""

import mmap
import time
from pathlib import Path

import numpy as np
import pytest
from kernel_support import limits, program_of, run, step, tensors

from tokenworks.kernels.backend import Executable
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.program import ProgramBuilder
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError


def compile_with(weight: Tensor) -> None:
    out_features, in_features = weight.shape
    program = program_of(in_features, lambda b, x: b.linear(x, [weight.name], out_features))
    CpuBackend().compile(program, tensors({"x": np.zeros((2, in_features))}) | {weight.name: weight}, limits())


def test_an_unknown_format_names_the_weight() -> None:
    bad = Tensor("layers.3.up", "IQ2_XS", (32, 32), np.zeros(100, np.uint8))
    with pytest.raises(ModelError, match=r"'layers\.3\.up': format IQ2_XS is not one this backend runs \(F32, F16"):
        compile_with(bad)


def test_a_weight_cut_short_is_named() -> None:
    bad = Tensor("w", "Q8_0", (32, 32), np.zeros(32 * 34 - 1, np.uint8))
    with pytest.raises(ModelError, match="'w': it has 1087 bytes where its shape and format need 1088"):
        CpuBackend().compile(
            program_of(32, lambda b, x: b.linear(x, ["w"], 32)),
            tensors({"x": np.zeros((2, 32))}) | {"w": bad},
            limits(),
        )


def test_rows_that_are_not_whole_blocks_are_named() -> None:
    bad = Tensor("w", "Q8_0", (32, 40), np.zeros(32 * 34, np.uint8))
    with pytest.raises(ModelError, match=r"'w': 40 elements are not whole blocks of 32 \(Q8_0\)"):
        CpuBackend().compile(
            program_of(40, lambda b, x: b.linear(x, ["w"], 32)),
            tensors({"x": np.zeros((2, 40))}) | {"w": bad},
            limits(),
        )


def attention() -> Executable:
    program = program_of(
        12, lambda b, x: b.attend(*(x.columns(i, 4) for i in (0, 4, 8)), heads=1, kv_heads=1, head_size=4, scale=1.0)
    )
    return CpuBackend().compile(program, tensors({"x": np.zeros((9, 12))}), limits(step_tokens=40, blocks=4))


@pytest.mark.parametrize(
    ("parts", "tables", "complaint"),
    [
        ([([9], 0)], [[0]], "token id"),
        ([([-1], 0)], [[0]], "token id"),
        ([([1], -1)], [[0]], "position"),
        ([([1] * 17, 0)], [[0]], "beyond its block table"),
        ([([1] * 17, 0)], [[0, -1]], "outside the cache"),
        ([([1], 0)], [[4]], "outside the cache"),
        ([([1], 0), ([], 0)], [[0], [1]], "without rows"),
        ([([1] * 41, 0)], [[0, 1, 2]], "larger than the limits"),
    ],
)
def test_a_step_that_points_outside_is_refused(parts: list, tables: list, complaint: str) -> None:
    executable = attention()
    with pytest.raises(ValueError, match=complaint):
        executable.run(step(parts, tables))
    assert run(executable, step([([1, 2], 0)], [[3]])).shape == (2, 4)


def test_a_tied_table_is_kept_once() -> None:
    rng = np.random.default_rng(1)
    table = rng.standard_normal((64, 32)).astype(np.float32)
    program = program_of(32, lambda b, x: b.linear(x, ["x"], 64))
    executable = CpuBackend().compile(program, tensors({"x": table}), limits())
    assert executable.weight_bytes == table.nbytes
    np.testing.assert_allclose(run(executable, step([([5, 6], 0)])), table[[5, 6]] @ table.T, rtol=1e-4, atol=1e-4)


def test_a_mapped_file_is_left_as_it_was_and_can_be_packed_again(tmp_path: Path) -> None:
    table = np.random.default_rng(2).standard_normal((64, 32)).astype(np.float32)
    (tmp_path / "weights").write_bytes(table.tobytes())
    with (tmp_path / "weights").open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensor = Tensor("x", "F32", table.shape, np.frombuffer(memoryview(mapping), np.uint8))
    builder = ProgramBuilder()
    program = builder.finish(builder.embed("x", 32))
    for _ in range(2):
        executable = CpuBackend().compile(program, {"x": tensor}, limits())
        np.testing.assert_array_equal(run(executable, step([([7], 0)])), table[7:8])


def test_a_result_outlives_its_executable() -> None:
    program = program_of(32, lambda b, x: b.activate(x, "silu"))
    result = CpuBackend().compile(program, tensors({"x": np.ones((2, 32))}), limits()).run(step([([0], 0)]))
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_threads_sleep_between_steps() -> None:
    executable = attention()
    run(executable, step([([1, 2], 0)], [[3]]))
    before_s = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before_s < 0.1


def test_a_cache_that_only_gpus_keep_is_refused() -> None:
    builder = ProgramBuilder()
    program = builder.finish(builder.embed("x", 8))
    with pytest.raises(ModelError, match=r"The CPU keeps K and V as .*int8; fp8 \(cache_dtype\) needs a GPU"):
        CpuBackend().compile(program, {}, limits(cache_dtype="fp8"))
