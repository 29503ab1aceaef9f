"""A smaller model of the same vocabulary guesses what the served one will say (Leviathan et al. 2023, arXiv 2211.17192;
Chen et al. 2023, arXiv 2302.01318).

It guesses greedily, one token for all sequences in each pass. It is verified as every guess is (engine/speculate.py),
so nothing depends on it but the speed, and that is measured: its passes by the clock, its guesses by sequence.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import numpy as np

from tokenworks.engine.acceptance import Acceptance
from tokenworks.engine.follow import Following, Run
from tokenworks.engine.passes import FIRST_TOKENS, Passes
from tokenworks.engine.sequence import Sequence
from tokenworks.kernels.backend import Executable, Int32, Limits, StepBatch


class DraftModel:
    """A Proposer with an executable and a cache of its own."""

    def __init__(
        self,
        executable: Executable,
        limits: Limits,
        *,
        context_tokens: int,
        vocabularies: tuple[int, int],
        clock: Callable[[], float],
    ) -> None:
        """`limits` are those it was compiled for: as many sequences at least as the served model's. `vocabularies`:
        how many token ids this model knows and how many the served one; the same up to the smaller number. `clock`
        gives seconds."""
        self._executable = executable
        self._block_tokens = limits.block_tokens
        self._step_tokens = limits.step_tokens
        own, served = vocabularies
        self._guessable = min(own, served)
        self._following = Following(limits, context_tokens, own)
        self._acceptance = Acceptance()
        self._passes = Passes(limits.step_tokens, clock)
        self.drafted = self.accepted = 0

    @property
    def spent_s(self) -> float:
        return self._passes.spent_s

    def chances(self, sequence: Sequence, most: int) -> SequenceOf[float]:
        follower = self._following.of(sequence)
        most = min(most, self._following.most(follower))
        return (self._acceptance.rate(follower.rate),) * most

    def lacking(self, sequence: Sequence) -> int:
        follower = self._following.of(sequence)
        return len(follower.tokens) - follower.computed

    def seconds(self, tokens: int) -> float:
        return self._passes.seconds(tokens)

    def propose(self, wanted: SequenceOf[tuple[Sequence, int]]) -> list[list[int]]:
        self._passes.begin()
        followers = []
        for sequence, count in wanted:
            followers.append(self._following.of(sequence))
            followers[-1].wanted = count
        runs = self._following.first(followers, self._step_tokens if self._passes.known else FIRST_TOKENS)
        while runs:
            tokens = sum(len(run.tokens) for run in runs)
            runs = self._following.ran(runs, self._run(runs))
            self._passes.done(tokens)
        return [follower.guesses[:] for follower in followers]

    def made(self, sequence: Sequence, tokens: int, drafted: int) -> None:
        follower = self._following.followers.get(sequence.request.request_id)
        if follower is None:
            return
        if drafted:
            self.drafted += drafted
            self.accepted += tokens - 1
            self._acceptance.count(follower.rate, drafted, tokens - 1)
        else:
            follower.rate.pass_by(tokens)
        self._following.made(follower)

    def left(self, sequence: Sequence) -> None:
        self._following.left(sequence)

    def _run(self, runs: SequenceOf[Run]) -> list[int]:
        """One pass; the guess of each run that guesses."""
        row_starts = np.cumsum([0, *(len(run.tokens) for run in runs)], dtype=np.int32)
        longest = max(run.start + len(run.tokens) for run in runs)
        tables = self._following.space.tables
        slots = [run.follower.slot for run in runs]
        batch = StepBatch(
            tokens=np.array([token for run in runs for token in run.tokens], np.int32),
            positions=np.array([run.start + i for run in runs for i in range(len(run.tokens))], np.int32),
            row_starts=row_starts,
            block_tables=np.ascontiguousarray(tables[slots, : -(-longest // self._block_tokens)]),
            logit_rows=_last_rows(runs, row_starts),
        )
        logits = self._executable.run(batch)
        # Whatever numbers come, also such as are not finite: an index in range.
        return logits[:, : self._guessable].argmax(axis=1).tolist() if len(logits) else []


def _last_rows(runs: SequenceOf[Run], row_starts: Int32) -> Int32:
    return row_starts[1:][[run.guesses for run in runs]] - np.int32(1)
