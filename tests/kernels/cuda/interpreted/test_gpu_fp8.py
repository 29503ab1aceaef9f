"""Products of FP8 with FP8 against float64 with the same rounded activations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bring import CPU, brought
from guessing_model import model
from test_gpu_blocks import random_tensor

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.products import fp8
from tokenworks.kernels.cuda.products.blocks import FUSED_ROWS, BlockMatrix, pack_blocks
from tokenworks.kernels.cuda.products.finish import Finish, Gated
from tokenworks.kernels.cuda.scratch import Scratch
from tokenworks.kernels.formats import dequantise
from tokenworks.protocol.errors import ModelError

ROWS = FUSED_ROWS + 1


def activations(rows: int, columns: int) -> torch.Tensor:
    """Tokens of very different sizes; one that is nothing."""
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * torch.logspace(-6, 5, rows)[:, None]
    x[1] = 0
    return x.bfloat16()


def in_fp8(x: torch.Tensor) -> np.ndarray:
    """What is left of activations when each token is rounded with a scale of its own."""
    scales = x.float().abs().amax(1, keepdim=True) / 448
    scales = torch.where(scales > 0, scales, 1.0)
    return ((x.float() / scales).to(torch.float8_e4m3fn).double() * scales.double()).numpy()


def matrix_of(rows: int, columns: int, fp8_inputs: bool = True) -> tuple[BlockMatrix, np.ndarray]:
    tensor = replace(random_tensor("F8_E4M3", rows, columns), fp8_inputs=fp8_inputs)
    return brought([tensor], pack_blocks), dequantise(tensor).astype(np.float64)


@pytest.mark.parametrize("columns", [64, 100])
def test_activations_are_rounded_in_the_order_of_the_weights(columns: int) -> None:
    """The product of a row of ones, code by code, shows where each column went."""
    x = activations(5, columns)
    matrix, _ = matrix_of(16, columns)
    codes, scales = fp8.rounded(x, matrix.weights.words.shape[1])
    padded = codes.shape[1]
    ordered = codes.float().view(5, padded // 32, 16, 2).transpose(2, 3).reshape(5, padded)
    np.testing.assert_array_equal(ordered[:, :columns].double() * scales[:, None].double(), in_fp8(x))
    assert not ordered[:, columns:].any()
    assert scales[1] == 1


@pytest.mark.parametrize(("rows", "columns"), [(48, 100), (64, 96)])
def test_large_steps_multiply_fp8_with_fp8(rows: int, columns: int) -> None:
    matrix, weights = matrix_of(rows, columns)
    x, out = activations(ROWS, columns), torch.full((ROWS, rows), float("nan"), dtype=torch.bfloat16)
    matrix.multiply(x, Finish(out, Scratch(CPU)))
    wanted = in_fp8(x) @ weights.T
    size = np.abs(in_fp8(x)) @ np.abs(weights.T)
    assert (np.abs(out.double().numpy() - wanted) <= 2.0**-8 * np.abs(wanted) + 1e-5 * size).all()
    plain = x.double().numpy() @ weights.T
    assert np.abs(out.double().numpy() - plain).max() > 4 * np.abs(out.double().numpy() - wanted).max()


def test_what_follows_a_product_follows_this_one_too() -> None:
    matrix, weights = matrix_of(64, 96)
    torch.manual_seed(4)
    x, bias, residual = activations(ROWS, 96).float().clamp(-9, 9), torch.randn(64), torch.randn(ROWS, 32)
    out, gate = torch.full((ROWS, 32), float("nan")), Gated("silu", 0.0, 0.0)
    matrix.multiply(x, Finish(out, Scratch(CPU), residual=residual, bias=bias, gate=gate))
    both = in_fp8(x) @ weights.T
    spread = 2.0**-8 * np.abs(both)
    up, lower = both[:, 32:] + bias[32:].double().numpy(), both[:, :32] + bias[:32].double().numpy()
    wanted = lower / (1 + np.exp(-lower)) * up + residual.double().numpy()
    bound = 1.2 * spread[:, :32] * np.abs(up) + spread[:, 32:] * np.abs(lower) + 1e-4
    assert (np.abs(out.double().numpy() - wanted) <= bound).all()


@pytest.mark.parametrize(("tokens", "rows", "fp8_inputs"), [(3, 48, True), (ROWS, 48, False), (ROWS, 40, True)])
def test_few_tokens_and_files_that_do_not_ask_for_it_keep_activations(tokens: int, rows: int, fp8_inputs: bool) -> None:
    """Nor is it done where rows are not such as FP8's products take them."""
    matrix, weights = matrix_of(rows, 64, fp8_inputs)
    x, out = activations(tokens, 64), torch.empty(tokens, rows)
    matrix.multiply(x, Finish(out, Scratch(CPU)))
    size = np.abs(x.double().numpy()) @ np.abs(weights.T)
    assert (np.abs(out.double().numpy() - x.double().numpy() @ weights.T) <= 2.0**-8 * size).all()


def test_a_library_that_fails_or_errs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fp8.runs_fp8(CPU)

    def fail(*given: object, **options: object) -> None:
        raise RuntimeError("not on this chip")

    for bad in (fail, lambda *given, out, **options: out.fill_(1.0)):
        fp8.runs_fp8.cache_clear()
        monkeypatch.setattr(torch, "_scaled_mm", bad)
        assert not fp8.runs_fp8(CPU)
    monkeypatch.undo()
    fp8.runs_fp8.cache_clear()


def test_a_cache_in_fp8_wants_a_chip_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    limits = Limits(16, 4, 4, 8, 4, "fp8", 1)
    with pytest.raises(ModelError, match=r"cache_dtype: fp8 needs .* 8\.9 or newer; this one's is 8\.6"):
        CudaBackend().compile(*model("grouped queries"), limits)
