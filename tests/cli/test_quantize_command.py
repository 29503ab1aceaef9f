"""`tokenworks quantize` as a user meets it: interrupted and killed wherever it happens to be, and started again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import TOKENWORKS, WITHIN_S, run

sys.path.append(str(Path(__file__).parents[1] / "quant"))
from small_models import folder_bytes, write_model, write_text


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TOKENWORKS, "quantize", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def finished(part: Path) -> int:
    """Weights that lie there whole."""
    return len(list(part.glob("layers.*.npz")))


def test_killed_and_interrupted_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt")
    text.write_text(text.read_text()[:1600])
    words = (str(model), "--to", "nvfp4", "--calibrate", str(text), "--out")
    assert run("quantize", *words, str(tmp_path / "whole")).returncode == 0
    out, part = tmp_path / "out", tmp_path / "out.part"
    stopped_at: list[int] = []
    for how in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process, before = start(*words, str(out)), finished(part)
        while process.poll() is None and finished(part) < before + 2:
            time.sleep(0.001)
        process.send_signal(how)
        _, errors = process.communicate(timeout=WITHIN_S)
        assert process.returncode == (130 if how == signal.SIGINT else -how), errors
        assert "Traceback" not in errors
        if how == signal.SIGINT:
            assert f"lies in {part}: the same command goes on from there" in errors
        assert not out.exists()
        stopped_at.append(finished(part))
    assert stopped_at == sorted(set(stopped_at)), "each run went on where the one before had stopped"
    assert run("quantize", *words, str(out)).returncode == 0
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
    assert not part.exists()


@pytest.mark.parametrize("share", ["-1", "101", "some", "nan"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str) -> None:
    done = run("quantize", "smollm2-135m", "--to", "nvfp4", "--spare", share, "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "a number from 0 to 100" in done.stderr
