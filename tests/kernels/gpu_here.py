"""The GPU backend for tests of the interface: skipped, with the reason, where there is no GPU.

With TRITON_INTERPRET=1 it runs on CPU tensors under Triton's interpreter, without graphs: slow, but it shows without a
GPU that a test is right.
"""

import os
import sys
from pathlib import Path

import pytest

from tokenworks.fleet.device import gpu_trouble
from tokenworks.kernels.backend import Backend

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cpu" if INTERPRETED else "cuda"
TROUBLE = None if INTERPRETED else gpu_trouble()


def gpu_backend() -> Backend:
    from tokenworks.kernels.cuda.backend import CudaBackend

    if INTERPRETED:
        sys.path.append(str(Path(__file__).parent / "cuda/interpreted"))
        import right_interpreter

        right_interpreter.install()
    return CudaBackend(DEVICE)


NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(TROUBLE is not None, reason=f"no GPU: {TROUBLE}")]
GPU = pytest.param(gpu_backend, id="gpu", marks=NEEDS_GPU)
"""Among a test's backends."""
