"""Products with weights of few bits against float64, and their layout against kernels/formats.py."""

import numpy as np
import pytest
import torch
from bring import CPU, brought

from tokenworks.kernels.cuda.products.block_layout import bytes_of
from tokenworks.kernels.cuda.products.blocks import FUSED_ROWS, BlockMatrix, pack_blocks
from tokenworks.kernels.cuda.products.finish import Finish, Gated
from tokenworks.kernels.cuda.products.stacked import StackedMatrix
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.cuda.weights import pack
from tokenworks.kernels.formats import FORMATS, dequantise
from tokenworks.kernels.tensor import Description, Tensor

EXACT = {"NVFP4", "MXFP4", "I8", "F8_E4M3"}
"""Their numbers, but for the scale of a row, fit into bfloat16."""

ROUNDED = {"Q4_0", "Q4_1", "Q8_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F8_64"}
"""Scales are rounded to bfloat16, and then the numbers."""

MINIMA = {"Q4_1", "Q5_1", "Q4_K", "Q5_K"}

HALVES = {"Q4_0": [0], "Q8_0": [0], "Q5_0": [0], "Q6_K": [208]} | {key: [0, 2] for key in MINIMA}
"""Where in a block its float16 numbers are."""


def random_tensor(name: str, rows: int, columns: int, seed: int = 1) -> Tensor:
    """Random codes; scales as models have them, some of them 0, some negative where the format allows that."""
    rng = np.random.default_rng(seed)
    form = FORMATS[name]
    count = rows * columns // form.block_elements
    data = rng.integers(0, 256, (count, form.block_bytes)).astype(np.uint8)
    row_scales = None
    if name == "MXFP4":
        data[:, 0] = rng.integers(100, 125, count)
    elif name in EXACT:
        row_scales = rng.standard_normal(rows).astype(np.float32) * 0.01
        data = np.where(data & 127 == 127, 0, data) if name == "F8_E4M3" else data  # no NaN
    if name == "F8_64":
        data = np.where(data & 127 == 127, 0, data)
        scales = (
            rng.standard_normal((count, 1)) * np.exp2(rng.integers(-12, 3, (count, 1))) * (rng.random((count, 1)) > 0.1)
        )
        data[:, :4] = scales.astype(np.float32).view(np.uint8)
    for at in HALVES.get(name, []):
        scales = rng.standard_normal(count) * np.exp2(rng.integers(-12, 3, count)) * (rng.random(count) > 0.1)
        data[:, at : at + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
    return Tensor("weight", name, (rows, columns), data.ravel(), row_scales)


def written(matrix: BlockMatrix) -> torch.Tensor:
    """Its weights, by the kernel that writes them out."""
    out = torch.full((matrix.out_features, matrix.in_features), float("nan"), dtype=torch.bfloat16)
    matrix.dequantise(out)
    return out


def worst(got: torch.Tensor, wanted: np.ndarray) -> float:
    """Largest error, as a share of the root mean square of what is wanted."""
    return float(np.abs(got.double().numpy() - wanted).max() / np.sqrt((wanted**2).mean()))


@pytest.mark.parametrize("name", sorted(EXACT | ROUNDED))
def test_every_weight_is_what_the_format_says(name: str) -> None:
    """Through the kernel that writes them out; rows and columns that fill no tile."""
    tensor = random_tensor(name, 37, 512 if name.endswith("_K") else 320)
    wanted = dequantise(tensor).astype(np.float64)
    matrix = brought([tensor], pack_blocks)
    got = written(matrix)
    assert matrix.nbytes == bytes_of(Description(name, tensor.shape))
    bound = np.abs(wanted) * 2.0**-8 * (1.001 if name in EXACT else 2.01)
    if name in MINIMA:  # which are rounded as well, and may be the larger part of what is left
        bound += np.abs(wanted).reshape(37, -1, 32).max(2).repeat(32, axis=1) * 2.0**-7
    assert (np.abs(got.double().numpy() - wanted) <= bound).all()
    if name == "MXFP4":
        np.testing.assert_array_equal(got.float().numpy(), wanted)


def test_all_codes_and_scales_of_nvfp4() -> None:
    """Each E4M3 scale with each E2M1 code, subnormal scales, zero and NaN as formats.py reads them."""
    data = np.zeros((256, 36), np.uint8)
    data[:, :4] = np.arange(256)[:, None]
    data[:, 4:] = np.tile(np.arange(32) * 8 + np.arange(32) % 8, (256, 1))
    tensor = Tensor("weight", "NVFP4", (256, 64), data.ravel())
    got = written(brought([tensor], pack_blocks))
    np.testing.assert_array_equal(got.float().numpy(), dequantise(tensor))


def test_scales_of_mxfp4_far_apart() -> None:
    """Within 2^31 of a row's largest they are exact, beyond that nothing."""
    data = np.zeros((3, 4, 17), np.uint8)
    data[:, :, 0] = [[127, 126, 97, 96], [10, 3, 2, 1], [250, 220, 219, 210]]
    data[:, :, 1:] = 0x5B
    tensor = Tensor("weight", "MXFP4", (3, 128), data.ravel())
    wanted = dequantise(tensor).reshape(3, 4, 32).copy()
    wanted[2, 3] = 0
    got = written(brought([tensor], pack_blocks)).float().numpy().reshape(3, 4, 32)
    np.testing.assert_array_equal(got, wanted)


OF_EACH_CODING = ["NVFP4", "MXFP4", "Q4_0", "Q4_K", "Q8_0", "Q6_K", "Q5_K", "I8", "F8_E4M3", "F8_64"]

SHAPES = [  # tokens, rows of weights, columns, dtype of what goes in and out
    (17, 130, 256, torch.bfloat16, torch.bfloat16),
    (33, 64, 768, torch.float32, torch.float32),
]


@pytest.mark.parametrize(
    ("name", "tokens", "rows", "columns", "x_type", "out_type"),
    [(name, *shape) for name in OF_EACH_CODING for shape in SHAPES]
    + [
        ("NVFP4", 1, 576, 192, torch.bfloat16, torch.float32),
        ("MXFP4", 70, 200, 352, torch.bfloat16, torch.float32),
        ("Q8_0", 16, 96, 416, torch.bfloat16, torch.float32),
    ],
)
def test_products(name: str, tokens: int, rows: int, columns: int, x_type: torch.dtype, out_type: torch.dtype) -> None:
    tensor = random_tensor(name, rows, columns)
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((tokens, columns)).astype(np.float32)).to(x_type)
    out = torch.full((tokens, rows), float("nan"), dtype=out_type)
    matrix = brought([tensor], pack_blocks)
    matrix.multiply(x, Finish(out, Scratch(CPU)))
    weights = dequantise(tensor) if name in EXACT else written(matrix).float().numpy()
    wanted = x.to(torch.bfloat16).double().numpy() @ weights.astype(np.float64).T
    rounding = 2.0**-8 * np.abs(wanted) if out_type == torch.bfloat16 else 0
    assert (np.abs(out.double().numpy() - wanted) < 2e-6 * np.abs(wanted).max() + rounding).all()


def test_stacked_weights_a_gate_a_bias_and_the_residual() -> None:
    """Two tensors' rows one after the other, the row scales of each its own; columns in several shares."""
    tensors = [random_tensor("NVFP4", 96, 1024, seed) for seed in (1, 2)]
    matrix = brought(tensors, pack_blocks)
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 1024))).to(torch.bfloat16)
    torch.manual_seed(4)
    bias, residual = torch.randn(192), torch.randn(3, 96)
    out, scratch = residual.clone(), Scratch(CPU)
    finish = Finish(out, scratch, residual=out, bias=bias, gate=Gated("silu", 0.0, 0.5))
    matrix.reserve(finish)
    held = scratch.nbytes
    for _ in range(2):  # counters are as they were, so that a second time is no different
        out.copy_(residual)
        matrix.multiply(x, finish)
        weights = np.concatenate([dequantise(tensor) for tensor in tensors]).astype(np.float64)
        both = x.double().numpy() @ weights.T + bias.double().numpy()
        gate, up = both[:, :96], both[:, 96:]
        wanted = gate / (1 + np.exp(-gate)) * (up + 0.5) + residual.double().numpy()
        assert worst(out, wanted) < 1e-5
    assert scratch.nbytes == held, "what was reserved sufficed"


def test_shares_and_steps_do_not_depend_on_the_number_of_tokens() -> None:
    """So that up to 64 of them a token's sums are made in the same order."""
    matrix = brought([random_tensor("NVFP4", 256, 1024)], pack_blocks)
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((64, 1024))).to(torch.bfloat16)
    outs = []
    for rows in (1, 20, 64):
        outs.append(torch.empty(rows, 256))
        matrix.multiply(x[:rows], Finish(outs[-1], Scratch(CPU)))
    torch.testing.assert_close(outs[1][:1], outs[0], rtol=0, atol=0)
    torch.testing.assert_close(outs[2][:20], outs[1], rtol=0, atol=0)


def test_many_rows_are_dequantised_first() -> None:
    tensor = random_tensor("NVFP4", 64, 128)
    x = torch.from_numpy(np.random.default_rng(5).standard_normal((FUSED_ROWS + 1, 128))).to(torch.bfloat16)
    out = torch.empty(FUSED_ROWS + 1, 64)
    brought([tensor], pack_blocks).multiply(x, Finish(out, Scratch(CPU)))
    wanted = x.double().numpy() @ dequantise(tensor).astype(np.float64).T
    error = np.abs(out.double().numpy() - wanted)
    rounding = 2.0**-8 * (x.double().abs().numpy() @ np.abs(dequantise(tensor)).astype(np.float64).T)
    assert error.max() > 0
    assert (error <= rounding).all(), "the row scales are rounded in with the weights"


@pytest.mark.parametrize("gate", [None, Gated("silu", 0.0, 0.0)])
def test_weights_of_different_formats_side_by_side(gate: Gated | None) -> None:
    """As Q4_K_M files have Q, K and V; with a gate it reads across the parts."""
    tensors = [random_tensor(name, 32, 256) for name in ("Q4_K", "Q6_K", "NVFP4")]
    f16 = np.random.default_rng(3).standard_normal((32, 256)).astype(np.float16)
    tensors.append(Tensor("weight", "F16", (32, 256), f16.reshape(-1).view(np.uint8)))
    matrix = brought(tensors, pack)
    assert isinstance(matrix, StackedMatrix)
    assert matrix.nbytes < 2 * 128 * 256
    torch.manual_seed(4)
    x, bias = torch.randn(3, 256).to(torch.bfloat16), torch.randn(128)
    out = torch.full((3, 64 if gate else 128), float("nan"))
    residual = None if gate else torch.randn(3, 128)
    finish = Finish(out, Scratch(CPU), residual=residual, bias=bias, gate=gate)
    matrix.reserve(finish)
    matrix.multiply(x, finish)
    weights = [written(brought([tensor], pack_blocks)) for tensor in tensors[:2]]
    weights += [torch.from_numpy(dequantise(tensors[2])), torch.from_numpy(f16).bfloat16()]
    wanted = x.double().numpy() @ torch.cat([each.double() for each in weights]).numpy().T + bias.double().numpy()
    limit = 4e-6 * np.abs(wanted).max()
    if gate:
        both = np.abs(wanted[:, :64] * wanted[:, 64:])
        limit = 2.0**-6 * both + 1e-5 * both.max()  # both are rounded to bfloat16 before
        wanted = wanted[:, :64] / (1 + np.exp(-wanted[:, :64])) * wanted[:, 64:]
    else:
        wanted += residual.double().numpy()
    assert (np.abs(out.double().numpy() - wanted) <= limit).all()


def test_what_has_no_coding_is_left_to_others() -> None:
    assert brought([random_tensor("Q4_0", 32, 64), random_tensor("Q8_0", 32, 64)], pack_blocks) is None
    assert brought([Tensor("weight", "F16", (2, 32), np.zeros(128, np.uint8))], pack_blocks) is None
