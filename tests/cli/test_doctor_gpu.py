"""What `doctor` says of a GPU: used, or why not; what is expected of it."""

from dataclasses import replace

import pytest

from tokenworks.cli import doctor
from tokenworks.telemetry.machine import Machine, machine

pytest.importorskip("triton")
device = pytest.importorskip("tokenworks.kernels.cuda.device")


@pytest.fixture(scope="module")
def here() -> Machine:
    return replace(machine(), gpus=("NVIDIA H100, 81559 MiB, 580.1",))


def test_a_gpu_that_is_not_used_says_why_and_what_helps(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_trouble", lambda: "torch missing: pip install 'tokenworks[cuda]'")
    name, trouble = doctor._gpu(here)
    assert (name.topic, name.text) == ("gpu", "NVIDIA H100, 81559 MiB, 580.1")
    assert "not used, models run on the CPU: torch missing" in trouble.text
    assert trouble.cure == "`pip install 'tokenworks[cuda]'`" and not trouble.needed


def test_a_gpu_that_is_used_says_what_bounds_it(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_trouble", lambda: None)
    monkeypatch.setattr(device, "facts", lambda: device.Facts("H100", "9.0", "13.0", 80 << 30, 79 << 30, 3.0e12))
    text = "\n".join(finding.text for finding in doctor._gpu(here))
    assert "will be used: H100, compute capability 9.0" in text
    assert "copies at 3.00 TB/s" in text
    assert "8B bf16 200," in text
    assert "tensor_parallel" not in text
    two = doctor._gpu(replace(here, gpus=here.gpus * 2))
    assert "the first of 2; `tensor_parallel` under `engine`" in two[1].text


def test_none(here: Machine) -> None:
    assert [finding.text for finding in doctor._gpu(replace(here, gpus=()))] == ["none"]
