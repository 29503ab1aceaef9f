"""The device's memory and its end: what does not fit is refused or tried again; no process outlives an error of its
device. Its requests are the next worker's (tests/gateway/test_survival.py)."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_gpu_doubts import decodes, executable, model

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.cuda.backend import CudaBackend
from tokenworks.kernels.cuda.memory import free_bytes
from tokenworks.protocol.errors import ModelError

LIMITS = Limits(64, 8, 8, 1, 4, "bfloat16", 1)


def test_the_cache_that_is_said_to_fit_does(backend: CudaBackend, real: None) -> None:
    """With everything a step takes: graphs, libraries' memory, a large product in passing."""
    program, weights = model()
    room = free_bytes(LIMITS, [(program, weights)])
    free, _ = torch.cuda.mem_get_info()
    assert 0.7 * free < room < free
    block_bytes = 2 * 2 * 16 * 4 * 2
    limits = replace(LIMITS, blocks=room // block_bytes)
    ours = backend.compile(program, weights, limits)
    assert ours.cache_bytes > 0.99 * room
    assert np.isfinite(np.array(ours.run(decodes(8, 3)))).all()
    del ours
    torch.cuda.empty_cache()


def test_what_does_not_fit_is_refused_with_what_could_be_smaller(backend: CudaBackend, real: None) -> None:
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(ModelError, match=r"blocks of cache .*cache_mb"):
        backend.compile(*model(), replace(LIMITS, blocks=free // 256))
    torch.cuda.empty_cache()
    assert np.isfinite(np.array(backend.compile(*model(), replace(LIMITS, blocks=64)).run(decodes(2, 1)))).all()


def test_memory_that_is_short_in_passing_is_asked_for_again(
    backend: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = executable(backend, 4)
    wanted, run, failures = np.array(ours.run(decodes(3, 0))), ours._begin, [torch.OutOfMemoryError("none left")]

    def short(*given: object) -> None:
        if failures:
            raise failures.pop()
        run(*given)

    monkeypatch.setattr(ours, "_begin", short)
    np.testing.assert_array_equal(np.array(ours.run(decodes(3, 0))), wanted)
    assert not failures


BROKEN = """
import sys
sys.path[:0] = {paths!r}
import torch, triton, triton.language as tl
from test_gpu_doubts import decodes, executable
from tokenworks.kernels.cuda.backend import CudaBackend

@triton.jit
def stray(x):
    tl.store(x + (1 << 45), 1)

ours = executable(CudaBackend(), 4)
print(ours.run(decodes(3, 0)).shape, flush=True)
stray[(1,)](torch.zeros(4, dtype=torch.int32, device="cuda"))
ours.run(decodes(3, 1))
print("finite", ours.finite, flush=True)
"""


def test_an_error_of_the_device_ends_the_process(real: None) -> None:
    code = BROKEN.format(paths=[str(Path(__file__).parent), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "(3, 500)" in done.stdout
    assert "finite" not in done.stdout
    assert done.returncode != 0
