"""Requests of every kind together, cancelled and preempted, on a real small model."""

from collections.abc import Callable

import pytest
from gpu_here import GPU, INTERPRETED
from mixed_requests import Mixture

from tokenworks.kernels.backend import Backend
from tokenworks.kernels.cpu.backend import CpuBackend


@pytest.mark.parametrize("make", [pytest.param(CpuBackend, id="cpu"), GPU])
def test_each_ends_once_and_rightly_and_nothing_is_lost(make: Callable[[], Backend]) -> None:
    backend = make()
    mixture = Mixture(backend, 1)
    endings = mixture.run(1000 if backend.name == "cuda" and not INTERPRETED else 40 if INTERPRETED else 200)
    assert mixture.preemptions > 0
    assert min(endings[how] for how in ("stop", "length", "cancelled")) > 2
