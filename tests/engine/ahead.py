"""Has the CPU's executables run ahead: steps may name tokens that only they have seen."""

from dataclasses import replace

import numpy as np
import pytest

from tokenworks.kernels.backend import Float32, Int32, SampleBatch, StepBatch
from tokenworks.kernels.cpu.backend import CpuExecutable


def run_ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on; returns how many unseen tokens each step has had."""
    unseen: list[int] = []
    drawn = [np.zeros(0, np.int32)]
    make, run, sample = CpuExecutable.__init__, CpuExecutable.run, CpuExecutable.sample

    def made(self: CpuExecutable, *args: object) -> None:
        make(self, *args)  # type: ignore[arg-type]
        self.runs_ahead = True

    def ran(self: CpuExecutable, batch: StepBatch, part: int | None = None) -> Float32:
        late = batch.tokens < 0
        unseen.append(int(late.sum()))
        tokens = batch.tokens.copy()
        tokens[late] = drawn[0][-1 - tokens[late]]
        return run(self, replace(batch, tokens=tokens), part)

    def sampled(self: CpuExecutable, logits: Float32, how: SampleBatch) -> Int32:
        drawn[0] = sample(self, logits, how).copy()
        return drawn[0].copy()

    monkeypatch.setattr(CpuExecutable, "__init__", made)
    monkeypatch.setattr(CpuExecutable, "run", ran)
    monkeypatch.setattr(CpuExecutable, "sample", sampled)
    return unseen
