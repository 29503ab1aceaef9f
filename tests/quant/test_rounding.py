"""Compensated rounding changes a layer's outputs less than rounding to nearest, on text it has not seen."""

import numpy as np
import pytest

from tokenworks.quant.rounding import compensate, curvature, gram, round_to_nearest
from tokenworks.quant.schemes import SchemeName


def _layer() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight and inputs, seen and unseen, that are correlated and of uneven size."""
    rng = np.random.default_rng(4)
    mixing = rng.normal(0, 1, (32, 96)) + 0.3 * rng.normal(0, 1, (1, 96))
    x = (rng.normal(0, 1, (3000, 32)) @ mixing + 0.3 * rng.normal(0, 1, (3000, 96))) * rng.uniform(0.2, 3, 96)
    return rng.normal(0, 0.05, (40, 96)).astype(np.float32), *np.split(x.astype(np.float32), 2)


@pytest.mark.parametrize(("scheme", "gain"), [("nvfp4", 2.0), ("mxfp4", 2.0), ("int8", 2.0), ("fp8", 2.0)])
def test_outputs_on_unseen_inputs_change_less(scheme: SchemeName, gain: float) -> None:
    weight, seen, unseen = _layer()

    def error(rounded: np.ndarray) -> float:
        return float((((rounded - weight) @ unseen.T) ** 2).sum())

    nearest = error(round_to_nearest(scheme, weight, (seen**2).mean(axis=0)).dequantise())
    assert error(compensate(scheme, weight, curvature(gram(seen))).dequantise()) < nearest / gain


def test_uncorrelated_inputs_leave_nothing_to_compensate() -> None:
    weight, _, _ = _layer()
    alike = np.eye(96, dtype=np.float32).repeat(4, axis=0)
    found = compensate("fp8", weight, curvature(gram(alike)))
    np.testing.assert_array_equal(found.codes, round_to_nearest("fp8", weight).codes)


def test_columns_beyond_the_last_whole_block_are_rounded_too() -> None:
    weight = np.random.default_rng(5).normal(0, 1, (8, 40)).astype(np.float32)
    text = curvature(gram(np.random.default_rng(6).normal(0, 1, (200, 40)).astype(np.float32)))
    assert np.abs(compensate("int8", weight, text).dequantise() - weight).max() < 0.2
