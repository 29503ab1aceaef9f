"""What of benchmarks/gpu.py runs without a GPU: its arguments, the models' shapes, what a step must read, a model."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import gpu
from gpu_models import SHAPES, Shape, program, random_weights

from tokenworks.kernels.backend import Limits
from tokenworks.kernels.check import needs
from tokenworks.kernels.reference import ReferenceBackend

TINY = Shape(2, 64, 128, 4, 2, 16, 96, tied=True)


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = gpu.arguments(["b", "--out", "x.json", "--seconds", "5"])
    assert (chosen.part, chosen.out, chosen.seconds) == ("b", Path("x.json"), 5.0)
    with pytest.raises(SystemExit):
        gpu.arguments(["d"])
    assert "invalid choice: 'd'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "gigabytes", "kib_a_token"), [("8B", 15.0, 128), ("1.7B", 3.42, 192), ("135M", 0.27, 22.5)]
)
def test_floors_are_those_of_the_models(name: str, gigabytes: float, kib_a_token: float) -> None:
    assert SHAPES[name].decode_bytes(1, 0) / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert SHAPES[name].kv_bytes(1) / 1024 == kib_a_token


def test_floors_of_prompts_and_of_fewer_bits() -> None:
    shape = SHAPES["8B"]
    assert shape.prompt_flops(2048) == pytest.approx(2 * 7.0e9 * 2048, rel=0.05)
    assert shape.prompt_flops(8192) > 4 * shape.prompt_flops(2048)
    head = 2 * shape.vocabulary * shape.width
    assert shape.weight_bytes(4.5) == pytest.approx((shape.weight_bytes() - head) * 4.5 / 16 + head)


@pytest.mark.parametrize("form", ["BF16", "NVFP4"])
def test_a_random_model_runs(form: str) -> None:
    weights, made = random_weights(TINY, form), program(TINY)
    assert set(needs(made)) == set(weights)
    model = ReferenceBackend().compile(made, weights, Limits(40, 3, 3, 16, gpu.BLOCK_TOKENS, "bfloat16", 1))
    prompted, decoded = model.run(gpu.prompt(TINY, 40)), model.run(gpu.decodes(TINY, 3, 20))
    assert prompted.shape == (1, 96) and decoded.shape == (3, 96)
    assert np.isfinite(prompted).all() and np.ptp(prompted) > 0


def test_the_peer_has_the_same_shape() -> None:
    pytest.importorskip("transformers")
    peer = gpu.peer_model(TINY, "cpu")
    names = {name for name, *_ in TINY.matrices()} | {"embed"}
    assert sum(each.numel() for each in peer.parameters() if each.ndim == 2) == sum(
        int(np.prod(random_weights(TINY)[name].shape)) for name in names
    )


def test_a_figure_that_fails_or_comes_too_late_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report = gpu.Report("a", 60.0)
    report.add("good", 2.0, "us", share=0.5, of="copy")
    report.attempt("bad", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    report.end_s = 0.0
    report.attempt("late", lambda: None)
    assert [figure["note"].split(":")[0] for figure in report.figures] == ["", "failed", "no time left"]
    assert "50.0% of copy" in capsys.readouterr().out
