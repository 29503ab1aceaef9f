"""Products of each head by itself on the CPU against the reference."""

import numpy as np
import pytest
from kernel_support import compiled, limits, program_of, run, step, tensors

from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import FORMATS
from tokenworks.kernels.program import Program
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.kernels.tensor import Tensor

HEADS, ROWS = 5, 37
RNG = np.random.default_rng(1)


def program(inputs: int, outputs: int, kept: int) -> Program:
    width = HEADS * (kept + inputs)
    return program_of(
        width + 3, lambda b, x: b.linear_heads(x.columns(3, width), [f"w{h}" for h in range(HEADS)], outputs, kept=kept)
    )


@pytest.mark.parametrize(("inputs", "outputs", "kept"), [(64, 48, 16), (9, 14, 6), (33, 1, 0)])
def test_heads_equal_the_reference_and_rows_alone(inputs: int, outputs: int, kept: int) -> None:
    arrays = {f"w{h}": RNG.standard_normal((outputs, inputs)) for h in range(HEADS)}
    arrays["x"] = RNG.standard_normal((ROWS, HEADS * (kept + inputs) + 3))
    which = program(inputs, outputs, kept)
    got, want = (
        run(compiled(backend(), which, arrays), step([(range(ROWS), 0)])) for backend in (CpuBackend, ReferenceBackend)
    )
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    ours = compiled(CpuBackend(), which, arrays, threads=1)
    for row in (0, 16, ROWS - 1):
        np.testing.assert_array_equal(run(ours, step([([row], 0)]))[0], got[row])


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "MXFP4", "BF16"])
def test_weights_of_any_format_are_multiplied_as_each_alone_would_be(name: str) -> None:
    form = FORMATS[name]
    inputs, outputs, kept = 2 * max(32, form.block_elements), 24, 8
    weights = tensors({"x": RNG.standard_normal((ROWS, HEADS * (kept + inputs) + 3))})
    for h in range(HEADS):
        blocks = RNG.integers(0, 64, (outputs * inputs // form.block_elements, form.block_bytes), np.uint8)
        weights[f"w{h}"] = Tensor(f"w{h}", name, (outputs, inputs), blocks.reshape(-1))
    got = run(CpuBackend().compile(program(inputs, outputs, kept), weights, limits()), step([(range(ROWS), 0)]))
    for h in range(HEADS):
        columns = (3 + h * (kept + inputs) + kept, inputs)
        alone = program_of(
            HEADS * (kept + inputs) + 3,
            lambda b, x, h=h, columns=columns: b.linear(x.columns(*columns), [f"w{h}"], outputs),
        )
        want = run(CpuBackend().compile(alone, weights, limits()), step([(range(ROWS), 0)]))
        assert np.abs(want).max() > 0
        np.testing.assert_array_equal(got[:, h * (kept + outputs) + kept :][:, :outputs], want)
