"""What only a GPU can show. Skipped, with the reason, where there is none; docs/gpu.md says how they are run."""

import pytest
from gpu_here import DEVICE, NEEDS_GPU, gpu_backend

from tokenworks.kernels.backend import Backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "gpu":
            for mark in NEEDS_GPU:
                item.add_marker(mark)


@pytest.fixture
def backend() -> Backend:
    return gpu_backend()


@pytest.fixture
def device(backend: Backend) -> str:
    return DEVICE


@pytest.fixture
def real(device: str) -> None:
    """For tests of graphs, streams and memory."""
    if device != "cuda":
        pytest.skip("not under the interpreter")
