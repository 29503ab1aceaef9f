"""Which chip a worker runs on, and what it takes of it where nobody has said."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenworks.config import EngineSettings, data_directory
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.kernels.backend import Backend, CacheType, Limits
from tokenworks.kernels.program import Program
from tokenworks.kernels.tensor import Tensor
from tokenworks.protocol.errors import ModelError

DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""Of NVIDIA's driver on Linux, and of Windows' under WSL."""
LEAST_CACHE_BYTES = 64 << 20
"""Less serves nobody."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much a worker takes on."""

    cache_dtype: CacheType
    step_tokens: int
    sequences: int
    cache_mb: int | None
    """None: what is free."""


DEFAULTS: dict[Literal["cpu", "cuda"], Capacity] = {
    "cpu": Capacity("int8", 512, 64, 1024),
    "cuda": Capacity("bfloat16", 4096, 256, None),
}


def capacity(wanted: EngineSettings, backend: Backend) -> Capacity:
    """What the settings say, and the device's own measure for the rest."""
    usual = DEFAULTS["cuda" if backend.name == "cuda" else "cpu"]
    return Capacity(
        wanted.cache_dtype or usual.cache_dtype,
        wanted.step_tokens or usual.step_tokens,
        wanted.sequences or usual.sequences,
        wanted.cache_mb or usual.cache_mb,
    )


def choose_backend(settings: WorkerSettings) -> Backend:
    """Raises ModelError when a GPU is asked for and cannot be had."""
    if settings.backend == "reference":
        from tokenworks.kernels.reference import ReferenceBackend

        return ReferenceBackend()
    wanted = settings.engine.device
    if wanted != "cpu":
        trouble = gpu_trouble()
        if trouble is None:
            from tokenworks.kernels.cuda.backend import CudaBackend

            return CudaBackend()
        if wanted == "gpu":
            raise ModelError(f"device: gpu cannot be had: {trouble}.")
        if has_driver():
            sys.stderr.write(f"The GPU is not used: {trouble}.\n")
    from tokenworks.kernels.cpu.backend import CpuBackend

    return CpuBackend()


def check_ranks(settings: WorkerSettings) -> None:
    """Raises ModelError where so many GPUs cannot be had."""
    if settings.backend == "reference":
        return
    count = settings.engine.tensor_parallel
    trouble = "device is cpu" if settings.engine.device == "cpu" else gpu_trouble()
    if trouble is None:
        import torch

        if (there := torch.cuda.device_count()) < count:
            trouble = f"there {'is' if there == 1 else 'are'} {there} (as far as CUDA_VISIBLE_DEVICES says)"
    if trouble is not None:
        raise ModelError(f"tensor_parallel: {count} GPUs cannot be had: {trouble}.")


def rank_backend(settings: WorkerSettings, rank: int, meeting: Path) -> Backend:
    """One rank's, which has met the others when this returns."""
    from tokenworks.kernels.cuda.group import ArrayGroup, TorchGroup

    count = settings.engine.tensor_parallel
    if settings.backend == "reference":
        from tokenworks.kernels.reference import ReferenceBackend

        return ReferenceBackend(ArrayGroup(TorchGroup(rank, count, meeting, "cpu")))
    from tokenworks.kernels.cuda.backend import CudaBackend

    return CudaBackend(f"cuda:{rank}", TorchGroup(rank, count, meeting, "cuda"))


def has_driver() -> bool:
    return any(Path(file).exists() for file in DRIVER_FILES)


def gpu_trouble() -> str | None:
    """Why there is no GPU to run on; None if there is one. PyTorch is loaded only where a driver is."""
    if not has_driver():
        return "there is no NVIDIA driver"
    missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing: pip install 'tokenworks[cuda]'"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device (its build, the driver's version, or CUDA_VISIBLE_DEVICES)"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"{torch.cuda.get_device_name()} has no bfloat16 (compute capability {major}.{minor}; 8.0 is needed)"
    return compiler_trouble()


def compiler_trouble() -> str | None:
    """Why kernels cannot be compiled for the current device; None if they can."""
    keep_kernels()
    from triton.runtime import driver

    try:
        driver.active.get_current_target()  # builds, once, what asks the driver
    except Exception as error:  # whatever a C compiler, a linker or a loader may say
        return f"Triton cannot build for it; it needs gcc or clang and Python's headers (python3-dev): {error}"
    return None


def keep_kernels() -> None:
    """Compiled kernels are kept where all else is, unless Triton is told another place: a service's user may have no
    home. Several processes may write there at once: files take their places whole."""
    if "TRITON_CACHE_DIR" in os.environ:
        return
    folder = data_directory() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        sys.stderr.write(f"Compiled kernels are not kept: {error}.\n")
        folder = Path(tempfile.mkdtemp(prefix="tokenworks-kernels-"))
    os.environ["TRITON_CACHE_DIR"] = str(folder)


def free_mb(limits: Limits, models: Iterable[tuple[Program, Mapping[str, Tensor]]]) -> int:
    """What the GPU has left for a cache beside these programs and their weights, MiB. Raises ModelError where that is
    next to nothing."""
    from tokenworks.kernels.cuda.memory import free_bytes

    free = free_bytes(limits, models)
    if free < LEAST_CACHE_BYTES:
        raise ModelError(
            f"The GPU's memory has no room for a cache beside the weights and steps of {limits.step_tokens} tokens "
            f"({-free / 2**30:.1f} GiB are missing): device: cpu, a smaller step_tokens or fewer other workers help."
        )
    return free // 2**20
