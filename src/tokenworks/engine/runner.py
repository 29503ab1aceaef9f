"""Runs a step: plan -> arrays -> model -> logits -> tokens."""

import numpy as np

from tokenworks.engine.features import MediaEncoder
from tokenworks.engine.plan import Piece, StepPlan, StepResult
from tokenworks.engine.sampler import Sampler
from tokenworks.kernels.backend import Executable, Float32, StateBatch, StepBatch
from tokenworks.protocol.messages import TokenLogprobs


def assemble(plan: StepPlan, block_tokens: int) -> StepBatch:
    """The plan's tokens as the backend takes them: sequence after sequence."""
    tokens: list[int] = []
    positions: list[int] = []
    row_starts = [0]
    logit_rows: list[int] = []
    slots: list[int] = []
    adapters: list[int] = []
    longest = 0
    for sequence, start, end, logits_from, _, draft, _ in plan.pieces:
        if end - start == 1:
            tokens.append(sequence.tokens[start])
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
    begin = [piece.sequence.state_begin for piece in plan.pieces]
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

    def run(self, plan: StepPlan) -> StepResult:
        """Runs a plan's pieces, if it has any."""
        for sequence in plan.admitted:  # which may have none yet: they wait for a picture or a sound
            self._sampler.load(sequence)
        if not plan.pieces:
            return StepResult()
        logits = self._run(plan)
        result = StepResult()
        if not len(logits):
            return result
        drafts = self._look_for_bad_rows(plan, logits, result)
        rows: list[int] = []
        row = 0
        for index, piece in enumerate(plan.pieces):
            wanted = piece.end - piece.logits_from
            if piece.sequence.prompt_logprobs_due and wanted:
                result.prompt_logprobs[index] = self._prompt_logprobs(piece, logits[row : row + wanted])
            row += wanted
            rows.append(row - 1 - len(piece.draft))
        self._draw(plan, logits, rows, drafts, result)
        return result

    def _run(self, plan: StepPlan) -> Float32:
        """The logits that the plan wants."""
        if self._encoder is None:
            return self._executable.run(assemble(plan, self._block_tokens))
        batches = self._encoder.batches(plan, lambda some: assemble(some, self._block_tokens))
        return [self._executable.run(batch, part) for batch, part in batches][-1]

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
            tokens, logprobs, complete, failed = self._sampler.sample(
                logits if len(taken) == len(logits) else logits[taken],
                [plan.pieces[index].sequence for index in whose],
                ahead,
            )
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

    def _look_for_bad_rows(self, plan: StepPlan, logits: Float32, result: StepResult) -> list[tuple[int, ...]]:
        """A row with NaN or infinity fails its own sequence, and is made harmless for those who read on; a draft
        token's only ends the draft before it. Returns each piece's draft, as far as it can be used."""
        drafts = [piece.draft for piece in plan.pieces]
        if self._executable.finite:
            return drafts
        bad = np.logical_not(np.isfinite(np.asarray(logits)).all(axis=1))
        logits[bad] = 0
        row = 0
        for index, piece in enumerate(plan.pieces):
            end = row + piece.end - piece.logits_from
            own = end - len(piece.draft)
            if bad[row:own].any():
                result.failed[index] = "the model gave numbers that are not finite"
            elif bad[own:end].any():
                drafts[index] = piece.draft[: int(bad[own:end].argmax())]
            row = end
        return drafts

    def _prompt_logprobs(self, piece: Piece, logits: Float32) -> list[TokenLogprobs]:
        """Of the prompt tokens that follow the piece's; the prompt's last token is followed by none."""
        sequence = piece.sequence
        following = sequence.tokens[piece.start + 1 : min(piece.end + 1, sequence.prompt_tokens)]
        if not following:
            return []
        top = sequence.request.sampling.prompt_logprobs or 0
        chosen = np.array(following, np.int32)
        return self._sampler.logprobs(logits[: len(following)], chosen, [top] * len(following))
