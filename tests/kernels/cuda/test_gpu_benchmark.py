"""What of benchmarks/gpu runs without a GPU: its arguments, the models' shapes, what a step must read; on the CPU also
models, the engine around them, a start from a checkpoint, and peers."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks/gpu"))

import peers
import serving
import steps
from measure import Report
from shapes import SHAPES, Shape, program, random_weights, write_checkpoint

from tokenworks.kernels.backend import Executable, Limits
from tokenworks.kernels.check import needs
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.models.checkpoint import open_checkpoint

TINY = Shape(2, 64, 128, 4, 2, 16, 96, tied=True)


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(Path(steps.__file__).with_name("__main__.py")))
    chosen = main["arguments"](["b", "--out", "x.json", "--seconds", "5"])
    assert (chosen.part, chosen.out, chosen.seconds) == ("b", Path("x.json"), 5.0)
    with pytest.raises(SystemExit):
        main["arguments"](["d"])
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
    model = ReferenceBackend().compile(made, weights, Limits(40, 3, 3, 16, steps.BLOCK_TOKENS, "bfloat16", 1))
    prompted, decoded = model.run(steps.prompt(TINY, 40)), model.run(steps.decodes(TINY, 3, 20))
    assert prompted.shape == (1, 96) and decoded.shape == (3, 96)
    assert np.isfinite(prompted).all() and np.ptp(prompted) > 0


def test_the_peer_has_the_same_shape() -> None:
    pytest.importorskip("transformers")
    peer = peers.peer_model(TINY, "cpu")
    names = {name for name, *_ in TINY.matrices()} | {"embed"}
    assert sum(each.numel() for each in peer.parameters() if each.ndim == 2) == sum(
        int(np.prod(random_weights(TINY)[name].shape)) for name in names
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Executable:
    limits = steps.limits_of(4, 256, 64)
    model = CpuBackend().compile(program(TINY), random_weights(TINY), limits)
    monkeypatch.setattr(model, "_limits", limits, raising=False)
    monkeypatch.setattr(serving, "STEPS", 8)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    return model


def test_the_engine_around_steps(small: Executable) -> None:
    report = Report("c", 60.0)
    serving.idle_points(report, small, "tiny", 32, (1, 4))
    serving.cpu_point(report, small, TINY, 4)
    serving.first_tokens(report, small, "tiny", TINY, (8, 64))
    points = [figure["point"] for figure in report.figures]
    assert points[:2] == ["tiny GPU idle between steps, 1", "tiny GPU idle between steps, 4"]
    assert points[2:] == ["CPU work of a step, 4", "tiny first token after 8", "tiny first token after 64"]
    assert all(figure["value"] > 0 for figure in report.figures[2:])


def test_a_checkpoint_of_a_shape(tmp_path: Path) -> None:
    write_checkpoint(TINY, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    model = ReferenceBackend().compile(checkpoint.program(), checkpoint.tensors, steps.limits_of(3, 64, 64))
    made = program(TINY)
    direct = ReferenceBackend().compile(made, random_weights(TINY), steps.limits_of(3, 64, 64))
    np.testing.assert_allclose(model.run(steps.prompt(TINY, 40)), direct.run(steps.prompt(TINY, 40)), atol=1e-4)


def test_a_start_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("c", 60.0)
    serving.starts(report, "tiny", TINY, "cpu", 8)
    assert [figure["point"] for figure in report.figures] == [
        f"tiny ready, {how} kernel cache" for how in ("cold", "warm")
    ]
    assert "'open'" in report.figures[0]["note"]


def test_peers_run() -> None:
    report = Report("b", 60.0)
    peers.compiled_decode(report, TINY, 2, 16, 1.0)
    peers.prompts(report, TINY, {16: 1.0})
    points = [figure["point"] for figure in report.figures]
    assert points == ["transformers compiled, 2 x 16", "transformers prompt of 16"]


def test_steps_of_a_batch_are_those_in_which_all_decode() -> None:
    early, late = [0.0, *(10 + at / 10 for at in range(40))], [11.0 + at / 10 for at in range(41)]
    ms, steps_seen = peers._step_of([early, late])
    assert (ms, steps_seen) == (pytest.approx(100), 29)
    with pytest.raises(AssertionError, match="end before"):
        peers._step_of([[0.0, 1.0], [2.0, 3.0]])


def test_a_figure_that_fails_or_comes_too_late_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("a", 60.0)
    report.add("good", 2.0, "us", share=0.5, of="copy")
    report.attempt("bad", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    report.end_s = 0.0
    report.attempt("late", lambda: None)
    assert [figure["note"].split(":")[0] for figure in report.figures] == ["", "failed", "no time left"]
    assert "50.0% of copy" in capsys.readouterr().out
