"""A stand-in for a model that remembers what was written to each cache slot, and checks it whenever it is read."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tokenworks.kernels.backend import Float32, Int32, Limits, RowChange, SampleBatch, StepBatch
from tokenworks.kernels.changes import apply_changes

UInt64 = npt.NDArray[np.uint64]

VOCABULARY = 32
EOS = 0
LONGEST = 4096
# A prefix's hash is the sum of (token + 1) * power of its position, modulo 2**64.
POWERS = np.array([pow(0x9E3779B97F4A7C15, i + 1, 2**64) for i in range(LONGEST)], np.uint64)


def next_token(prefix_hash: np.uint64, last: int) -> int:
    """What this "model" says after a prefix: the same whatever else runs.

    Mostly the last token decides, so it repeats itself, and guesses are right; now and then the whole prefix does.
    """
    value = int(prefix_hash) >> 20
    return value // 8 % VOCABULARY if value % 8 == 0 else 1 + last * 11 % (VOCABULARY - 1)


def continuation(prompt: list[int], count: int, *, ignore_eos: bool = False) -> list[int]:
    """The oracle: the next `count` tokens, with no engine, no blocks, no batch; EOS is the last."""
    tokens = list(prompt)
    value = sum((token + 1) * int(POWERS[i]) for i, token in enumerate(tokens)) % 2**64
    for _ in range(count):
        token = next_token(np.uint64(value), tokens[-1])
        value = (value + (token + 1) * int(POWERS[len(tokens)])) % 2**64
        tokens.append(token)
        if token == EOS and not ignore_eos:
            break
    return tokens[len(prompt) :]


class RememberingExecutable:
    """KV content of a slot: the token written there, and the hash of everything up to it."""

    weight_bytes = cache_bytes = 0
    runs_ahead = False
    finite = False
    """Not said, so that who runs it looks."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tokens = np.full((limits.blocks, limits.block_tokens), -1, np.int64)
        self.hashes = np.zeros((limits.blocks, limits.block_tokens), np.uint64)
        # Recurrent states: how many tokens a slot's state has seen, and their hash.
        self.seen = np.full(limits.state_slots, -1, np.int64)
        self.states = np.zeros(limits.state_slots, np.uint64)
        self.written = 0

    def expert_reads(self) -> tuple[int, int]:
        return 0, 0

    def run(self, batch: StepBatch) -> Float32:
        limits, size = self.limits, self.limits.block_tokens
        starts = batch.row_starts.tolist()
        assert len(batch.tokens) == len(batch.positions) == starts[-1] <= limits.step_tokens
        assert len(starts) - 1 == len(batch.block_tables) <= limits.sequences
        assert len(batch.logit_rows) <= limits.logit_rows
        assert (np.diff(batch.logit_rows) > 0).all()
        for array in (batch.tokens, batch.positions, batch.row_starts, batch.block_tables, batch.logit_rows):
            assert array.dtype == np.int32
            assert array.flags.c_contiguous
        self.written += starts[-1]
        row_hashes = np.zeros(starts[-1], np.uint64)
        for s, table in enumerate(batch.block_tables):
            first, last = starts[s], starts[s + 1]
            positions = batch.positions[first:last]
            begin, end = int(positions[0]), int(positions[-1]) + 1
            assert (positions == np.arange(begin, end)).all()
            blocks = table[: -(-end // size)]
            assert (blocks >= 0).all(), "a position without a block"
            assert len(set(blocks.tolist())) == len(blocks), "a block twice in one table"
            at = (blocks[np.arange(begin, end) // size], np.arange(begin, end) % size)
            before = np.uint64(0)
            if begin:
                before = self.hashes[blocks[(begin - 1) // size], (begin - 1) % size]
            steps = (batch.tokens[first:last].astype(np.uint64) + np.uint64(1)) * POWERS[begin:end]
            self.tokens[at] = batch.tokens[first:last]
            self.hashes[at] = np.cumsum(steps) + before
        for s, table in enumerate(batch.block_tables):  # after all writes, as a kernel would read
            end = int(batch.positions[starts[s + 1] - 1]) + 1
            at = (table[np.arange(end) // size], np.arange(end) % size)
            expected = np.cumsum((self.tokens[at].astype(np.uint64) + np.uint64(1)) * POWERS[:end])
            assert (self.hashes[at] == expected).all(), "a sequence reads what another one wrote"
            count = starts[s + 1] - starts[s]
            row_hashes[starts[s] : starts[s + 1]] = expected[end - count :]
        if limits.state_slots:
            row_hashes = self.carry_states(batch)
        assert (batch.states is None) == (limits.state_slots == 0)
        logits = np.zeros((len(batch.logit_rows), VOCABULARY), np.float32)
        for r, row in enumerate(batch.logit_rows):
            logits[r, next_token(row_hashes[row], int(batch.tokens[row]))] = 1
        return logits

    def carry_states(self, batch: StepBatch) -> UInt64:
        """Every row's hash, from the states alone."""
        states = batch.states
        assert states is not None
        writings = dict(zip(states.rows.tolist(), states.slots.tolist(), strict=True))
        assert len(set(writings.values())) == len(writings), "two states in one slot"
        assert sorted(writings) == states.rows.tolist()
        read = states.begin.tolist()
        hashes = np.zeros(len(batch.tokens), np.uint64)
        written: dict[int, tuple[int, int]] = {}
        for s, begin in enumerate(read):
            first, last = batch.row_starts[s : s + 2].tolist()
            position, value = int(batch.positions[first]), 0
            if position:
                assert self.seen[begin] == position, "a state of other tokens"
                value = int(self.states[begin])
            else:
                assert begin == -1
            assert last - 1 in writings
            for row in range(first, last):
                value = (value + (int(batch.tokens[row]) + 1) * int(POWERS[position])) % 2**64
                position += 1
                hashes[row] = value
                if row in writings:
                    slot = writings[row]
                    assert read.count(slot) == (slot == begin and row == last - 1), "written while another one reads it"
                    written[slot] = position, value
        for slot, (position, value) in written.items():
            self.seen[slot], self.states[slot] = position, value
        return hashes

    def sample(self, logits: Float32, how: SampleBatch) -> Int32:
        del how
        return logits.argmax(axis=1).astype(np.int32)

    def adjust(self, logits: Float32, changes: Sequence[RowChange]) -> list[int]:
        return apply_changes(logits, changes)

    def logprobs(self, logits: Float32, chosen: Int32, top: int) -> tuple[Float32, Int32, Int32, Float32]:
        """Not log-probabilities, but the rows they are of: which token this row's logits point to."""
        best = logits.argmax(axis=1).astype(np.int32)
        zeros = np.zeros(len(chosen), np.float32)
        return zeros, best, np.zeros((len(chosen), top), np.int32), np.zeros((len(chosen), top), np.float32)


class Ahead(RememberingExecutable):
    """Begins steps whose tokens nobody has seen."""

    runs_ahead = True

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.drawn = np.zeros(0, np.int32)
        self.unseen = 0
        """Tokens that steps had before anybody could see them."""

    def run(self, batch: StepBatch) -> Float32:
        late = batch.tokens < 0
        if not late.any():
            return super().run(batch)
        self.unseen += int(late.sum())
        tokens = batch.tokens.copy()
        tokens[late] = self.drawn[-1 - tokens[late]]
        return super().run(replace(batch, tokens=tokens))

    def sample(self, logits: Float32, how: SampleBatch) -> Int32:
        self.drawn = super().sample(logits, how)
        return self.drawn.copy()
