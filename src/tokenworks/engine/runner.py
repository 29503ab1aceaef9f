"""Runs a step: plan -> arrays -> model -> logits -> tokens.

    begin(plan)  ->  look(step) -> StepResult
                 `-> draw(step)  ...  finish(step) -> StepResult

Where the executable runs ahead, the next step can begin before `finish`: its tokens are named by the rows that they are
drawn from.
"""

import math

import numpy as np

from tokenworks.engine.features import MediaEncoder
from tokenworks.engine.plan import Piece, StepPlan, StepResult
from tokenworks.engine.sampler import Drawn, Logprobs, Sampler
from tokenworks.engine.sequence import Sequence
from tokenworks.kernels.backend import Executable, Float32, StateBatch, StepBatch
from tokenworks.protocol.messages import NOT_FINITE, TokenLogprobs


class Step:
    """A step that has begun."""

    def __init__(self, plan: StepPlan, logits: Float32 | None) -> None:
        self.plan = plan
        self.logits = logits
        self.drawn: Drawn | None = None

    def rows(self) -> dict[Sequence, int]:
        """Which row a sequence's next token is drawn from."""
        sampling = (piece.sequence for piece in self.plan.pieces if piece.samples)
        return {sequence: row for row, sequence in enumerate(sampling)}


def assemble(plan: StepPlan, block_tokens: int, before: Step | None = None) -> StepBatch:
    """The plan's tokens as the backend takes them: sequence after sequence. `before` is under way."""
    due = {} if before is None else before.rows()
    tokens: list[int] = []
    positions: list[int] = []
    row_starts = [0]
    logit_rows: list[int] = []
    slots: list[int] = []
    adapters: list[int] = []
    longest = 0
    for sequence, start, end, logits_from, _, draft, *_ in plan.pieces:
        if end - start == 1:
            tokens.append(sequence.tokens[start] if start < len(sequence.tokens) else -1 - due[sequence])
            positions.append(start)
        else:
            tokens += sequence.tokens[start:end]
            tokens += draft
            positions += range(start, end)
        rows = len(tokens)
        logit_rows += range(rows - (end - logits_from), rows)
        row_starts.append(rows)
        slots.append(sequence.slot)
        adapters.append(sequence.adapter)
        if end > longest:
            longest = end
    return StepBatch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        row_starts=np.array(row_starts, np.int32),
        block_tables=np.ascontiguousarray(plan.block_tables[slots, : -(-longest // block_tokens)]),
        logit_rows=np.array(logit_rows, np.int32),
        states=_states(plan, row_starts) if plan.pieces[0].writings else None,
        adapters=np.array(adapters, np.int32) if max(adapters) >= 0 else None,
    )


def _states(plan: StepPlan, row_starts: list[int]) -> StateBatch:
    rows, slots = [], []
    for piece, first in zip(plan.pieces, row_starts, strict=False):
        for tokens, slot in piece.writings:
            rows.append(first + tokens - piece.start - 1)
            slots.append(slot)
    begin = [piece.state_begin for piece in plan.pieces]
    return StateBatch(np.array(begin, np.int32), np.array(rows, np.int32), np.array(slots, np.int32))


class Runner:
    """One model's steps."""

    def __init__(
        self, executable: Executable, block_tokens: int, sampler: Sampler, encoder: MediaEncoder | None = None
    ) -> None:
        self._executable = executable
        self._block_tokens = block_tokens
        self._sampler = sampler
        self._encoder = encoder

    def begin(self, plan: StepPlan, before: Step | None = None) -> Step:
        """Runs a plan's pieces, if it has any; `before` may be under way if it was drawn from."""
        for sequence in plan.admitted:  # which may have none yet: they wait for a picture or a sound
            self._sampler.load(sequence)
        if not plan.pieces:
            return Step(plan, None)
        if self._encoder is None:
            return Step(plan, self._executable.run(assemble(plan, self._block_tokens, before)))
        batches = self._encoder.batches(plan, lambda some: assemble(some, self._block_tokens, before))
        return Step(plan, [self._executable.run(batch, part) for batch, part in batches][-1])

    def draw(self, step: Step) -> None:
        """Begins to draw the tokens of a step without drafts and logits of prompts; all steps before are committed."""
        sequences = [piece.sequence for piece in step.plan.pieces if piece.samples]
        if sequences and step.logits is not None:
            step.drawn = self._sampler.draw(step.logits, sequences, [0] * len(sequences))

    def finish(self, step: Step) -> StepResult:
        """What a step made that was drawn from: waits for it."""
        result = StepResult()
        if step.drawn is None:
            return result
        tokens, logprobs, result.complete, result.failed = step.drawn.take()
        result.tokens = [[token] for token in tokens]
        result.logprobs = {row: [each] for row, each in logprobs.items()}
        index_of = [index for index, piece in enumerate(step.plan.pieces) if piece.samples]
        if len(index_of) < len(step.plan.pieces):
            result.logprobs = {index_of[row]: each for row, each in result.logprobs.items()}
            result.complete = {index_of[row] for row in result.complete}
            result.failed = {index_of[row]: each for row, each in result.failed.items()}
        return result

    def look(self, step: Step) -> StepResult:
        """What a step made, drafts and logits of prompts included."""
        plan, logits, result = step.plan, step.logits, StepResult()
        if logits is None or not len(logits):
            return result
        drafts = [piece.draft for piece in plan.pieces]
        if not self._executable.runs_ahead and not self._executable.finite:
            self._look_for_bad_rows(plan, logits, drafts, result)
        rows: list[int] = []
        row = 0
        for index, piece in enumerate(plan.pieces):
            wanted = piece.end - piece.logits_from
            if piece.sequence.prompt_logprobs_due and wanted:
                found = result.prompt_logprobs[index] = self._prompt_logprobs(piece, logits[row : row + wanted])
                if any(math.isnan(at.logprob) for at in found):
                    result.failed[index] = NOT_FINITE
            row += wanted
            rows.append(row - 1 - len(piece.draft))
        self._draw(plan, logits, rows, drafts, result)
        return result

    def _draw(
        self, plan: StepPlan, logits: Float32, rows: list[int], drafts: list[tuple[int, ...]], result: StepResult
    ) -> None:
        """The tokens of all pieces that sample, the first of each from its row in `rows`, then while drafts are right.

        In rounds: a sequence whose options depend on the token before takes one row in each, all others every row in
        the first.
        """
        made: list[list[int]] = [[] for _ in plan.pieces]
        pieces = [index for index, piece in enumerate(plan.pieces) if piece.samples]
        result.tokens = [made[index] for index in pieces]
        while pieces:
            whose: list[int] = []
            ahead: list[int] = []
            by_steps: set[int] = set()
            for index in pieces:
                done, last = len(made[index]), len(drafts[index])
                if last and self._sampler.goes_by_steps(plan.pieces[index].sequence):
                    by_steps.add(index)
                    last = done
                for offset in range(done, last + 1):
                    whose.append(index)
                    ahead.append(offset)
            taken = [rows[index] + offset for index, offset in zip(whose, ahead, strict=True)]
            drawn = self._sampler.draw(
                logits if len(taken) == len(logits) else logits[taken],
                [plan.pieces[index].sequence for index in whose],
                ahead,
            )
            tokens, logprobs, complete, failed = drawn.take()
            pieces = []
            for at, (index, offset) in enumerate(zip(whose, ahead, strict=True)):
                so_far, draft = made[index], drafts[index]
                if offset != len(so_far) or (offset and so_far[-1] != draft[offset - 1]):
                    continue  # drawn after a draft token that proved wrong
                if at in failed:
                    if not offset:
                        result.failed[index] = failed[at]
                        so_far.append(tokens[at])
                    continue  # further on the next step finds it again, with the tokens before it told
                so_far.append(tokens[at])
                if at in logprobs:
                    result.logprobs.setdefault(index, []).append(logprobs[at])
                if at in complete:
                    result.complete.add(index)
                elif index in by_steps and offset < len(draft) and so_far[-1] == draft[offset]:
                    pieces.append(index)

    def _look_for_bad_rows(
        self, plan: StepPlan, logits: Float32, drafts: list[tuple[int, ...]], result: StepResult
    ) -> None:
        """A row with NaN or infinity fails its own sequence, and is made harmless for those who read on; a draft
        token's only ends the draft before it: `drafts` are cut to what can be used."""
        bad = np.logical_not(np.isfinite(np.asarray(logits)).all(axis=1))
        logits[bad] = 0
        row = 0
        for index, piece in enumerate(plan.pieces):
            end = row + piece.end - piece.logits_from
            own = end - len(piece.draft)
            if bad[row:own].any():
                result.failed[index] = NOT_FINITE
            elif bad[own:end].any():
                drafts[index] = piece.draft[: int(bad[own:end].argmax())]
            row = end

    def _prompt_logprobs(self, piece: Piece, logits: Float32) -> list[TokenLogprobs]:
        """Of the prompt tokens that follow the piece's; the prompt's last token is followed by none."""
        sequence = piece.sequence
        following = sequence.tokens[piece.start + 1 : min(piece.end + 1, sequence.prompt_tokens)]
        if not following:
            return []
        top = sequence.request.sampling.prompt_logprobs or 0
        chosen = np.array(following, np.int32)
        return Logprobs(self._executable, logits[: len(following)], chosen, [top] * len(following)).take()
