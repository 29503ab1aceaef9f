"""Codes against torch and against a search of the whole grid; scales against those that were not chosen."""

import numpy as np
import pytest
import torch

from tokenworks.quant.rounding import round_to_nearest
from tokenworks.quant.schemes import GRIDS, SchemeName, encode


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "int8", "fp8"])
def test_codes_are_the_nearest_of_the_whole_grid(scheme: SchemeName) -> None:
    grid = GRIDS[scheme]
    usable = np.clip(grid[np.isfinite(grid)], -np.nanmax(grid), None)  # int8 leaves -128 out
    largest = usable.max()
    x = np.random.default_rng(1).normal(0, largest / 3, 20000).astype(np.float32)
    x[:3] = 0, 2 * largest, -3 * largest
    found = GRIDS[scheme][encode(scheme, x)]
    least = np.abs(np.clip(x, -largest, largest)[:, None] - usable).min(axis=1)
    np.testing.assert_array_equal(np.abs(np.clip(x, -largest, largest) - found), least)
    assert not np.signbit(found[found == 0]).any()


def test_e4m3_rounds_as_torch_does_ties_and_subnormals_included() -> None:
    fine = torch.arange(0, 4096, dtype=torch.float32) * 2.0**-12
    coarse = torch.arange(0, 4480, dtype=torch.float32) / 10
    x = torch.cat((fine, coarse, -coarse))
    theirs = x.to(torch.float8_e4m3fn).to(torch.float32).numpy()
    np.testing.assert_array_equal(GRIDS["fp8"][encode("fp8", x.numpy())], theirs)


def test_e2m1_ties_go_to_the_even_code() -> None:
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    np.testing.assert_array_equal(GRIDS["nvfp4"][encode("nvfp4", ties)], [0, 1, 1, 2, 2, 4, 4])


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4"])
def test_searched_scales_lose_less_in_every_block(scheme: SchemeName) -> None:
    weight = np.random.default_rng(2).standard_t(4, (64, 256)).astype(np.float32)
    importance = np.random.default_rng(3).uniform(0.01, 3, 256).astype(np.float32)
    columns = {"nvfp4": 16, "mxfp4": 32}[scheme]

    def block_errors(search: bool) -> np.ndarray:
        error = round_to_nearest(scheme, weight, importance, search=search).dequantise() - weight
        return (error**2 * importance).reshape(64, -1, columns).sum(axis=2)

    searched, plain = block_errors(True), block_errors(False)
    assert (searched <= plain * (1 + 1e-5)).all()
    assert searched.sum() < 0.95 * plain.sum()


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "int8", "fp8"])
def test_rows_of_zeros_and_tiny_numbers_survive(scheme: SchemeName) -> None:
    weight = np.zeros((3, 64), np.float32)
    weight[1] = 1e-12
    weight[2, 5] = 3.0
    numbers = round_to_nearest(scheme, weight).dequantise()
    assert np.isfinite(numbers).all()
    assert not numbers[0].any()
    assert numbers[2, 5] == pytest.approx(3.0, rel=0.01)
