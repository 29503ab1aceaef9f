"""Linear products on the CPU: the stated arithmetic in every format, the same bits in any batch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from kernel_support import limits, run, step, tensors
from numpy.random import Generator

from tokenworks.kernels.backend import Executable, Float32
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.formats import FORMATS, dequantise
from tokenworks.kernels.program import ProgramBuilder
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

ROWS = 300
FLOATS = ["F32", "F16", "BF16", "F8_E4M3"]
EVERY = [name for name in FORMATS if name != "F8_64"]
"""The last is a GPU's."""
QUANTISED = [name for name in EVERY if name not in FLOATS]

SCALE_BYTES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
               "Q6_K": [208]}  # fmt: skip
"""Where a block keeps its float16s; every other byte may be anything."""

SCALE_CODES = {"MXFP4": (1, 118, 124), "NVFP4": (4, 1, 60)}
"""Of formats with scales of a byte: how many bytes a block begins with, and their range."""


def weight(name: str, form_name: str, out_features: int, in_features: int, rng: Generator) -> Tensor:
    """Any bytes, but for scales that are small numbers."""
    form = FORMATS[form_name]
    shape = (out_features, in_features)
    if form_name in FLOATS:
        values = (rng.standard_normal(shape) / np.sqrt(in_features)).astype(np.float32)
        if form_name == "F16":
            values = values.astype(np.float16)
        elif form_name == "BF16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        elif form_name == "F8_E4M3":
            codes = rng.integers(0, 254, shape, np.uint8)
            codes[codes >= 127] += 1
            return Tensor(name, form_name, shape, codes.reshape(-1), row_scales(out_features, rng))
        return Tensor(name, form_name, shape, values.reshape(-1).view(np.uint8))
    blocks = rng.integers(0, 256, (out_features * in_features // form.block_elements, form.block_bytes), np.uint8)
    for at in SCALE_BYTES.get(form_name, []):
        scales = rng.uniform(-0.02, 0.02, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    if form_name in SCALE_CODES:
        count, least, most = SCALE_CODES[form_name]
        blocks[:, :count] = rng.integers(least, most, (len(blocks), count), np.uint8)
    scaled = form_name in ("NVFP4", "I8")
    return Tensor(name, form_name, shape, blocks.reshape(-1), row_scales(out_features, rng) if scaled else None)


def row_scales(rows: int, rng: Generator) -> Float32:
    return rng.uniform(-0.02, 0.02, rows).astype(np.float32)


def product(
    weights: Sequence[Tensor], x: Float32, *, biases: Sequence[np.ndarray | None] = (), threads: int = 2
) -> Executable:
    builder = ProgramBuilder()
    names = [None if bias is None else f"bias{i}" for i, bias in enumerate(biases)]
    width = sum(tensor.shape[0] for tensor in weights)
    value = builder.linear(builder.embed("x", x.shape[1]), [t.name for t in weights], width, biases=names)
    given = {f"bias{i}": bias for i, bias in enumerate(biases) if bias is not None}
    every = tensors({"x": x} | given) | {tensor.name: tensor for tensor in weights}
    return CpuBackend().compile(builder.finish(value), every, limits(threads=threads))


ROUNDS = CpuBackend().isa in ("avx512_bf16", "amx")
"""This machine has products of bfloat16s."""


def as_multiplied(x: Float32, form_name: str = "Q8_0") -> np.ndarray:
    """What a weight is multiplied with. Quantised: int8 codes with a float32 scale for each 32 inputs; bfloat16, where
    the machine has products of it: the input rounded to it; others: the input as it is."""
    if form_name == "BF16" and ROUNDS:
        bits = x.view(np.uint32)
        return (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32).astype(np.float64)
    if form_name in FLOATS:
        return x.astype(np.float64)
    blocks = x.reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / largest))
    return (codes.astype(np.float64) * (largest / np.float32(127))).reshape(x.shape)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


@pytest.mark.parametrize("out_features", [16, 40, 1])
@pytest.mark.parametrize("form_name", QUANTISED)
def test_quantised_weights_multiply_quantised_inputs(form_name: str, out_features: int) -> None:
    rng = np.random.default_rng(1)
    k = 3 * max(32, FORMATS[form_name].block_elements)
    x = rng.standard_normal((37, k)).astype(np.float32)
    w = weight("w", form_name, out_features, k, rng)
    got = run(product([w], x), step([(range(37), 0)]))
    exact = dequantise(w).astype(np.float64)
    # Scales of the K formats are products rounded to float16.
    assert relative_error(got, as_multiplied(x) @ exact.T) < (6e-4 if form_name.endswith("K") else 2e-6)
    assert relative_error(got, x.astype(np.float64) @ exact.T) < 0.01


@pytest.mark.parametrize(("out_features", "in_features"), [(16, 64), (40, 33), (1, 1), (17, 7), (33, 158)])
@pytest.mark.parametrize("form_name", FLOATS)
def test_float_weights_multiply_floats(form_name: str, out_features: int, in_features: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((37, in_features)).astype(np.float32)
    w = weight("w", form_name, out_features, in_features, rng)
    got = run(product([w], x), step([(range(37), 0)]))
    exact = dequantise(w).astype(np.float64)
    assert relative_error(got, as_multiplied(x, form_name) @ exact.T) < 1e-6
    assert relative_error(got, x @ exact.T) < 0.004


@pytest.mark.parametrize("form_name", EVERY)
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(form_name: str) -> None:
    rng = np.random.default_rng(3)
    k = max(64, FORMATS[form_name].block_elements)
    x = rng.standard_normal((ROWS, k)).astype(np.float32)
    w = weight("w", form_name, 88, k, rng)
    executable = product([w], x)
    whole = run(executable, step([(range(ROWS), 0)]))
    for rows in [*range(1, 36), 47, 63, 64, 127, 255]:
        first = int(rng.integers(0, ROWS - rows + 1))
        got = run(executable, step([(range(first, first + rows), 0)]))
        np.testing.assert_array_equal(got, whole[first : first + rows])
    for threads in (1, 3):
        np.testing.assert_array_equal(run(product([w], x, threads=threads), step([(range(ROWS), 0)])), whole)


def test_the_largest_codes_of_8_bits_do_not_overflow() -> None:
    rng = np.random.default_rng(12)
    signs = rng.choice([-1.0, 1.0], (23, 64)).astype(np.float32)
    codes = rng.choice([-128, 127], (40, 64)).astype(np.int8)
    signs[:2], codes[:2] = [[1], [-1]], [[-128], [127]]
    w = Tensor("w", "I8", codes.shape, codes.reshape(-1).view(np.uint8), row_scales(40, rng))
    got = run(product([w], signs), step([(range(23), 0)]))
    assert relative_error(got, signs @ dequantise(w).astype(np.float64).T) < 2e-6


@pytest.mark.parametrize("form_name", ["Q4_1", "F16", "BF16"])
def test_products_too_large_for_one_task(form_name: str) -> None:
    rng = np.random.default_rng(11)
    x = rng.standard_normal((ROWS, 3072)).astype(np.float32)
    w = weight("w", form_name, 200, 3072, rng)
    executable = product([w], x)
    whole = run(executable, step([(range(ROWS), 0)]))
    assert relative_error(whole, as_multiplied(x, form_name) @ dequantise(w).astype(np.float64).T) < 2e-6
    for first, rows in ((0, 1), (63, 2), (130, 70), (299, 1)):
        got = run(executable, step([(range(first, first + rows), 0)]))
        np.testing.assert_array_equal(got, whole[first : first + rows])


@pytest.mark.parametrize("form_name", ["NVFP4", "I8", "F8_E4M3"])
def test_a_scale_for_the_whole_tensor_is_applied_to_the_finished_sum(form_name: str) -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((20, 64)).astype(np.float32)
    w = replace(weight("w", form_name, 40, 64, rng), row_scales=None)
    bias = rng.standard_normal(40).astype(np.float32)
    plain = run(product([w], x), step([(range(20), 0)]))
    scaled = replace(w, row_scales=np.full(40, 0.3, np.float32))
    got = run(product([scaled], x, biases=[bias]), step([(range(20), 0)]))
    # NVFP4 and F8_E4M3 have a power of two of their own in the same factor, which rounds nothing.
    np.testing.assert_array_equal(got, plain * np.float32(0.3) + bias)


def test_weights_that_cannot_be_run_are_named() -> None:
    rng = np.random.default_rng(10)
    w = weight("w", "F8_E4M3", 16, 64, rng)
    w.data[100] = 0xFF
    with pytest.raises(ModelError, match="'w': it holds NaN"):
        product([w], np.zeros((1, 64), np.float32))
    with pytest.raises(ModelError, match="'w': rows of 33 are not whole groups of 32"):
        product([weight("w", "I8", 16, 33, rng)], np.zeros((1, 33), np.float32))
    short = replace(weight("w", "I8", 16, 64, rng), row_scales=np.ones(15, np.float32))
    with pytest.raises(ModelError, match="'w': one scale for each row"):
        product([short], np.zeros((1, 64), np.float32))


def test_zeros_and_large_inputs() -> None:
    rng = np.random.default_rng(4)
    x = np.zeros((3, 64), np.float32)
    x[1] = 1e30
    x[2, 5] = -1e-30
    w = weight("w", "Q4_0", 16, 64, rng)
    got = run(product([w], x), step([(range(3), 0)]))
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got, x @ dequantise(w).T, rtol=1e-4)


def test_scales_that_are_powers_of_two() -> None:
    rng = np.random.default_rng(12)
    x = rng.standard_normal((21, 256)).astype(np.float32) * np.float32(1e9) ** rng.uniform(-1, 1, (21, 1)).astype("f")
    x[3], x[4, 7] = 0, np.inf
    w = weight("w", "MXFP4", 16, 256, rng)
    blocks = w.data.reshape(-1, 17)
    blocks[:, 0] = rng.integers(90, 160, len(blocks))
    blocks[::9] = 0  # a block of zeros has the smallest scale there is
    got = run(product([w], x), step([(range(21), 0)]))
    assert not np.isfinite(got[4]).any()
    np.testing.assert_array_equal(got[3], 0)
    for row in (0, 1, 2, *range(5, 21)):
        want = as_multiplied(x[row : row + 1]) @ dequantise(w).astype(np.float64).T
        assert relative_error(got[row], want[0]) < 2e-6


def test_stacked_weights_of_several_formats_with_biases() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((21, 256)).astype(np.float32)
    forms = ["Q4_1", "F16", "Q6_K", "Q8_0", "BF16"]
    weights = [
        weight(f"w{i}", name, n, 256, rng) for i, (name, n) in enumerate(zip(forms, [24, 5, 33, 16, 17], strict=True))
    ]
    biases = [rng.standard_normal(24), None, rng.standard_normal(33), None, rng.standard_normal(17)]
    got = run(product(weights, x, biases=biases), step([(range(21), 0)]))
    alone = [
        run(product([w], x, biases=[b] if b is not None else ()), step([(range(21), 0)]))
        for w, b in zip(weights, biases, strict=True)
    ]
    np.testing.assert_array_equal(got, np.concatenate(alone, axis=1))
    without = run(product(weights[:1], x), step([(range(21), 0)]))
    np.testing.assert_array_equal(alone[0], without + biases[0].astype(np.float32))


def test_a_sum_that_a_product_takes_over_has_the_same_bits() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((19, 64)).astype(np.float32)
    every = tensors({"x": x}) | {"w": weight("w", "Q4_1", 64, 64, rng)}

    def result(twice: bool) -> Float32:
        builder = ProgramBuilder()
        h = builder.embed("x", 64)
        y = builder.linear(h, ["w"], 64)
        total = builder.add(h, y)
        if twice:  # a second reader: the sum stays an instruction of its own
            builder.activate(y, "silu")
        return run(CpuBackend().compile(builder.finish(total), every, limits()), step([(range(19), 0)]))

    np.testing.assert_array_equal(result(twice=False), result(twice=True))


def test_an_input_that_changed_is_prepared_again() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    every = tensors({"x": x, "f": np.ones(32)}) | {"w": weight("w", "Q8_0", 48, 64, rng)}
    builder = ProgramBuilder()
    h = builder.embed("x", 64)
    before = builder.linear(h, ["w"], 48)
    builder.rope(h, 64, "f")
    after = builder.linear(h, ["w"], 48)
    got = run(CpuBackend().compile(builder.finish(builder.add(before, after)), every, limits()), step([(range(5), 0)]))
    turn = np.arange(5)[:, None]
    left, right = x[:, :32], x[:, 32:]
    turned = np.concatenate(
        [left * np.cos(turn) - right * np.sin(turn), right * np.cos(turn) + left * np.sin(turn)], axis=1
    ).astype(np.float32)
    w = dequantise(every["w"]).astype(np.float64)
    assert relative_error(got, (as_multiplied(x) + as_multiplied(turned)) @ w.T) < 2e-3


@pytest.mark.parametrize("form_name", EVERY)
def test_a_token_table_is_read_from_the_packed_weight(form_name: str) -> None:
    rng = np.random.default_rng(8)
    k = FORMATS[form_name].block_elements
    k = max(k, 64)
    table = weight("x", form_name, 50, k, rng)
    builder = ProgramBuilder()
    program = builder.finish(builder.embed("x", k, scale=2.0))
    got = run(CpuBackend().compile(program, {"x": table}, limits()), step([([49, 0, 16, 17], 0)]))
    want = 2 * dequantise(table)[[49, 0, 16, 17]]
    if form_name.endswith("K"):
        assert relative_error(got, want) < 3e-4
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("form_name", FLOATS)
def test_a_token_table_of_an_odd_width(form_name: str) -> None:
    table = weight("x", form_name, 20, 33, np.random.default_rng(13))
    builder = ProgramBuilder()
    program = builder.finish(builder.embed("x", 33))
    got = run(CpuBackend().compile(program, {"x": table}, limits()), step([([19, 0, 15, 16], 0)]))
    np.testing.assert_array_equal(got, dequantise(table)[[19, 0, 15, 16]])
