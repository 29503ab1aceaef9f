"""A model's own layer guesses what the model will say (models/parts/multi_token.py): speculation without another model.

The layer reads, for each token, what the model's head has read at the token before. These rows exist only while the
model runs: they are kept here until the layer has run them, so that its K and V get into the cache for every token, in
the blocks that hold the model's, entry p of the pair of tokens p and p + 1. A sequence that begins with a cached prefix
finds the layer's there too; the last entry of a block was made with the token that came first behind it, which may have
been another one: that costs nothing but an odd guess.

To guess, the layer runs the pairs that have come since it last ran, whose last result is the first guess; each further
one comes from its own result at the guess before. Entries of guesses are never kept: they lie in what is left of the
sequence's last block, then in blocks of the layer's own, and are run over. Where guessing does not pay, pairs are run
in batches, which takes next to nothing.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from tokenworks.engine.acceptance import Acceptance, Rate
from tokenworks.engine.passes import Passes
from tokenworks.engine.plan import StepPlan
from tokenworks.engine.sequence import Sequence
from tokenworks.engine.speculate import MOST_GUESSES
from tokenworks.kernels.backend import Executable, Float32, Int32, Limits, StepBatch, join_rows

_PENDING = 32
"""So many pairs of a sequence are run at once if nobody guesses meanwhile."""
_DEPTHS = 4
"""The layer is trained for the first guess; how right further ones are is known one by one up to here."""
_REMEMBERED_TRIALS = 32


def guess_blocks(sequences: int, block_tokens: int) -> int:
    """So many blocks behind those that sequences have are for guesses."""
    return sequences * -(-MOST_GUESSES // block_tokens)


class _Follower:
    """What is known of one sequence: what the head read at tokens `first`, `first` + 1, ..., not run yet."""

    __slots__ = ("first", "hidden", "rates", "sequence")

    def __init__(self, sequence: Sequence, first: int, hidden: Float32) -> None:
        self.sequence = sequence
        self.first = first
        self.hidden = hidden
        self.rates = tuple(Rate(_REMEMBERED_TRIALS) for _ in range(_DEPTHS))

    @property
    def pairs(self) -> int:
        """That can be run: the second token has come."""
        return max(0, min(len(self.hidden), len(self.sequence.tokens) - 1 - self.first))


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive pairs of one sequence in a pass."""

    first: int
    """Entry of the first."""
    tokens: list[int]
    """The second of each pair."""
    hidden: Float32
    """Of the first of each pair."""
    blocks: Int32
    """The sequence's row of the block table."""


class MultiToken:
    """A Proposer over the model's own executable."""

    def __init__(self, executable: Executable, limits: Limits, clock: Callable[[], float]) -> None:
        """`limits` are the scheduler's: the executable has guess_blocks() more. `clock` gives seconds."""
        self._executable = executable
        self._limits = limits
        self._passes = Passes(limits.step_tokens, clock)
        self._acceptance = tuple(Acceptance() for _ in range(_DEPTHS))
        self._followers: dict[str, _Follower] = {}
        self._departed: list[_Run] = []
        self._tables = np.empty((0, 0), np.int32)
        each = guess_blocks(1, limits.block_tokens)
        self._own_blocks = limits.blocks + np.arange(limits.sequences * each, dtype=np.int32).reshape(-1, each)
        """Of each slot."""
        self.drafted = self.accepted = 0

    @property
    def spent_s(self) -> float:
        return self._passes.spent_s

    def ran(self, plan: StepPlan) -> None:
        """The executable has run a plan that is not committed yet: takes what its head has read."""
        self._tables = plan.block_tables
        if not plan.pieces:
            return
        hidden, row = self._executable.hidden, 0
        for piece in plan.pieces:
            count, name = piece.end - piece.start, piece.sequence.request.request_id
            follower = self._followers.get(name)
            if follower is None:
                follower = self._followers[name] = _Follower(piece.sequence, piece.start, hidden[:0])
            assert follower.first + len(follower.hidden) == piece.start
            follower.hidden = join_rows((follower.hidden, hidden[row : row + count]))
            row += count

    def catch_up(self) -> None:
        """Before a step runs: runs the pairs of sequences that have many, but for the last one, which is for a guess;
        and of those that have left, before others write to their blocks."""
        runs, self._departed = self._departed, []
        for follower in self._followers.values():
            if follower.pairs > _PENDING:
                runs.append(self._take(follower, follower.pairs - 1))
        if runs:
            self._passes.begin()
        for batch in _batches(runs, self._limits):
            self._run(batch, guesses=False)

    def chances(self, sequence: Sequence, most: int) -> SequenceOf[float]:
        follower = self._followers.get(sequence.request.request_id)
        if follower is None or not len(follower.hidden):
            return ()
        chances, before = [], None
        for all_of_depth, rate in zip(self._acceptance, follower.rates, strict=True):
            before = all_of_depth.rate(rate, before)
            chances.append(before)
        return [chances[min(depth, _DEPTHS - 1)] for depth in range(min(most, MOST_GUESSES))]

    def lacking(self, sequence: Sequence) -> int:
        return self._followers[sequence.request.request_id].pairs

    def seconds(self, tokens: int) -> float:
        return self._passes.seconds(tokens)

    def propose(self, wanted: SequenceOf[tuple[Sequence, int]]) -> list[list[int]]:
        """Of those with many pairs to run as many as fit a pass: the others make no guess this time."""
        guesses: list[list[int]] = [[] for _ in wanted]
        self._passes.begin()
        runs: dict[int, _Run] = {}
        left = self._limits.step_tokens
        for index in sorted(range(len(wanted)), key=lambda each: self.lacking(wanted[each][0])):
            follower = self._followers[wanted[index][0].request.request_id]
            if follower.pairs <= left:
                left -= follower.pairs
                runs[index] = self._take(follower, follower.pairs)
        while runs:
            tokens, hidden = self._run(list(runs.values()), guesses=True)
            following: dict[int, _Run] = {}
            for at, ((index, run), token) in enumerate(zip(runs.items(), tokens, strict=True)):
                sequence, count = wanted[index]
                if token in sequence.ends:
                    continue
                guesses[index].append(token)
                if len(guesses[index]) < count:
                    entry = run.first + len(run.tokens)
                    following[index] = _Run(entry, [token], hidden[at : at + 1], self._with_own_blocks(sequence))
            runs = following
        return guesses

    def made(self, sequence: Sequence, tokens: int, drafted: int) -> None:
        follower = self._followers.get(sequence.request.request_id)
        if follower is None:
            return
        follower.hidden = follower.hidden[: sequence.reach - follower.first]
        if not drafted:
            for rate in follower.rates:
                rate.pass_by(tokens)
            return
        accepted = tokens - 1
        self.drafted += drafted
        self.accepted += accepted
        for depth in range(min(drafted, accepted + 1)):
            at = min(depth, _DEPTHS - 1)
            self._acceptance[at].count(follower.rates[at], 1, int(depth < accepted))

    def left(self, sequence: Sequence) -> None:
        """What the layer has not run of blocks that others may find is run when there is time."""
        follower = self._followers.pop(sequence.request.request_id, None)
        if follower is None:
            return
        shared = len(sequence.nodes) * self._limits.block_tokens - follower.first
        count = min(shared, follower.pairs)
        if count > 0:
            self._departed.append(self._take(follower, count))

    def _take(self, follower: _Follower, count: int) -> _Run:
        """The first pairs of a sequence, which it then has no more."""
        first, sequence = follower.first, follower.sequence
        tokens, hidden = sequence.tokens[first + 1 : first + 1 + count], follower.hidden[:count]
        follower.first += count
        follower.hidden = follower.hidden[count:]
        return _Run(first, tokens, hidden, self._tables[sequence.slot, : sequence.blocks].copy())

    def _with_own_blocks(self, sequence: Sequence) -> Int32:
        return np.concatenate((self._tables[sequence.slot, : sequence.blocks], self._own_blocks[sequence.slot]))

    def _run(self, runs: SequenceOf[_Run], *, guesses: bool) -> tuple[list[int], Float32]:
        """One pass; with `guesses`, of each run the token that follows and what the head has read."""
        row_starts = np.cumsum([0, *(len(run.tokens) for run in runs)], dtype=np.int32)
        blocks = max(-(-(run.first + len(run.tokens)) // self._limits.block_tokens) for run in runs)
        tables = np.full((len(runs), blocks), -1, np.int32)
        for row, run in zip(tables, runs, strict=True):
            row[: len(run.blocks)] = run.blocks[:blocks]
        batch = StepBatch(
            tokens=np.array([token for run in runs for token in run.tokens], np.int32),
            positions=np.concatenate([np.arange(len(run.tokens), dtype=np.int32) + run.first for run in runs]),
            row_starts=row_starts,
            block_tables=tables,
            logit_rows=row_starts[1:] - np.int32(1) if guesses else np.empty(0, np.int32),
            inputs=join_rows([run.hidden for run in runs]),
        )
        logits, hidden = self._executable.run_sequel(batch)
        # Whatever numbers come, also such as are not finite: an index in range.
        chosen = logits.argmax(axis=1).tolist() if guesses else []
        kept = hidden.copy() if guesses else hidden
        self._passes.done(int(row_starts[-1]) if guesses else 0)
        return chosen, kept


def _batches(runs: SequenceOf[_Run], limits: Limits) -> list[list[_Run]]:
    """As steps of at most so many tokens and sequences, in order."""
    batches: list[list[_Run]] = []
    left = 0
    for run in runs:
        at = 0
        while at < len(run.tokens):
            if not left or len(batches[-1]) == limits.sequences:
                batches.append([])
                left = limits.step_tokens
            end = min(len(run.tokens), at + left)
            batches[-1].append(_Run(run.first + at, run.tokens[at:end], run.hidden[at:end], run.blocks))
            left -= end - at
            at = end
    return batches
