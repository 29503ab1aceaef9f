"""A worker's chip: chosen by itself, forced, refused; and what it takes on."""

import os
import sys
import types
from pathlib import Path

import pytest

from tokenworks.config import EngineSettings
from tokenworks.fleet import device
from tokenworks.fleet.device import Capacity, capacity, check_ranks, choose_backend, gpu_trouble
from tokenworks.fleet.load import suited
from tokenworks.fleet.settings import WorkerSettings
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.models.checkpoint import open_checkpoint
from tokenworks.protocol.errors import ModelError


def settings(**engine: object) -> WorkerSettings:
    return WorkerSettings(path="", engine=EngineSettings(**engine))  # type: ignore[arg-type]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "driver"
    file.touch()
    monkeypatch.setattr(device, "DRIVER_FILES", (str(file),))


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER_FILES", ())


@pytest.fixture
def gpu(driver: None, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """PyTorch as it is where there is a GPU."""
    cuda = types.SimpleNamespace(
        is_available=lambda: True, get_device_capability=lambda: (9, 0), get_device_name=lambda: "a GPU"
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(device, "compiler_trouble", lambda: None)
    return cuda


def test_without_a_driver_torch_is_not_even_looked_at(no_driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would raise
    assert isinstance(choose_backend(settings()), CpuBackend)
    with pytest.raises(ModelError, match="device: gpu cannot be had: there is no NVIDIA driver"):
        choose_backend(settings(device="gpu"))


def test_a_driver_without_the_extra_says_what_to_install(
    driver: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None if name == "triton" else True)
    assert isinstance(choose_backend(settings()), CpuBackend)
    assert "triton missing: pip install 'tokenworks[cuda]'" in capsys.readouterr().err
    assert isinstance(choose_backend(settings(device="cpu")), CpuBackend)
    assert capsys.readouterr().err == ""


def test_a_gpu_that_cannot_do_it(gpu: types.SimpleNamespace) -> None:
    assert gpu_trouble() is None
    gpu.get_device_capability = lambda: (7, 5)
    assert "no bfloat16 (compute capability 7.5" in str(gpu_trouble())
    gpu.is_available = lambda: False
    assert "PyTorch sees no CUDA device" in str(gpu_trouble())


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Of a service: no home, no folder for kernels; a folder for data."""
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that what the test leaves is undone
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("TOKENWORKS_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def test_kernels_are_kept_beside_the_models(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device.keep_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == str(environment / "kernels")
    assert list((environment / "kernels").iterdir()) == []
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    device.keep_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == "mine"


def test_where_nothing_can_be_kept_kernels_are_compiled_anew(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    environment.write_text("a file, where the folder should be")
    monkeypatch.setattr(device.tempfile, "tempdir", str(tmp_path))
    device.keep_kernels()
    made = Path(os.environ["TRITON_CACHE_DIR"])
    assert made.is_dir() and made.parent == tmp_path
    assert "Compiled kernels are not kept" in capsys.readouterr().err


def test_a_compiler_that_is_missing_is_told_before_any_kernel_needs_it(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> None:
        raise RuntimeError("no C compiler")

    active = types.SimpleNamespace(get_current_target=build)
    driver = types.SimpleNamespace(driver=types.SimpleNamespace(active=active))
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(runtime=driver))
    monkeypatch.setitem(sys.modules, "triton.runtime", driver)
    assert "needs gcc or clang and Python's headers (python3-dev): no C compiler" in str(device.compiler_trouble())
    active.get_current_target = lambda: None
    assert device.compiler_trouble() is None


def test_more_gpus_than_there_are(gpu: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.device_count = lambda: 2
    check_ranks(settings(tensor_parallel=2))
    with pytest.raises(
        ModelError, match=r"tensor_parallel: 4 GPUs cannot be had: there are 2 \(as far as CUDA_VISIBLE"
    ):
        check_ranks(settings(tensor_parallel=4))
    with pytest.raises(ModelError, match="2 GPUs cannot be had: device is cpu"):
        check_ranks(settings(tensor_parallel=2, device="cpu"))
    monkeypatch.setattr(device, "DRIVER_FILES", ())
    with pytest.raises(ModelError, match="2 GPUs cannot be had: there is no NVIDIA driver"):
        check_ranks(settings(tensor_parallel=2))


def test_what_nobody_has_said_follows_the_device() -> None:
    backend = CpuBackend()
    assert capacity(EngineSettings(), backend) == Capacity("int8", 512, 64, 1024)
    gpu_backend = types.SimpleNamespace(name="cuda", compile=backend.compile)
    assert capacity(EngineSettings(), gpu_backend) == Capacity("bfloat16", 4096, 256, None)
    said = EngineSettings(cache_dtype="fp8", step_tokens=7, sequences=3, cache_mb=5)
    assert capacity(said, gpu_backend) == Capacity("fp8", 7, 3, 5)


def test_a_gpu_rounds_by_itself(minilm: Path) -> None:
    """So weights come to it as they are in the file."""
    checkpoint, wanted = open_checkpoint(minilm), settings(dtype="bfloat16")
    name = next(name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 2)
    formats = {
        each: suited(checkpoint, wanted, types.SimpleNamespace(name=each)).tensors[name].format  # type: ignore[arg-type]
        for each in ("cpu", "cuda")
    }
    assert formats == {"cpu": "BF16", "cuda": checkpoint.tensors[name].format}
    assert formats["cuda"] != "BF16"
