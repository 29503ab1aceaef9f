"""Runs a step: plan -> arrays -> model -> logits -> tokens."""

import numpy as np

from tokenworks.engine.plan import Piece, StepPlan, StepResult
from tokenworks.engine.sampler import Sampler
from tokenworks.kernels.backend import Executable, Float32, StepBatch
from tokenworks.protocol.messages import TokenLogprobs


def assemble(plan: StepPlan, block_tokens: int) -> StepBatch:
    """The plan's tokens as the backend takes them: sequence after sequence."""
    tokens: list[int] = []
    positions: list[int] = []
    row_starts = [0]
    logit_rows: list[int] = []
    slots: list[int] = []
    longest = 0
    for sequence, start, end, logits_from, _ in plan.pieces:
        if end - start == 1:
            tokens.append(sequence.tokens[start])
            positions.append(start)
        else:
            tokens += sequence.tokens[start:end]
            positions += range(start, end)
        rows = len(tokens)
        logit_rows += range(rows - (end - logits_from), rows)
        row_starts.append(rows)
        slots.append(sequence.slot)
        if end > longest:
            longest = end
    return StepBatch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        row_starts=np.array(row_starts, np.int32),
        block_tables=np.ascontiguousarray(plan.block_tables[slots, : -(-longest // block_tokens)]),
        logit_rows=np.array(logit_rows, np.int32),
    )


class Runner:
    """One model's steps."""

    def __init__(self, executable: Executable, block_tokens: int, sampler: Sampler) -> None:
        self._executable = executable
        self._block_tokens = block_tokens
        self._sampler = sampler

    def run(self, plan: StepPlan) -> StepResult:
        """Runs a plan that has pieces."""
        for sequence in plan.admitted:
            self._sampler.load(sequence)
        logits = self._executable.run(assemble(plan, self._block_tokens))
        result = StepResult()
        if not len(logits):
            return result
        self._fail_bad_rows(plan, logits, result)
        sampling: list[int] = []  # pieces, and their rows of logits
        rows: list[int] = []
        row = 0
        for index, piece in enumerate(plan.pieces):
            wanted = piece.end - piece.logits_from
            if piece.sequence.prompt_logprobs_due and wanted:
                result.prompt_logprobs[index] = self._prompt_logprobs(piece, logits[row : row + wanted])
            row += wanted
            if piece.samples:
                sampling.append(index)
                rows.append(row - 1)
        if not sampling:
            return result
        drawn_from = logits if len(rows) == len(logits) else logits[rows]
        sequences = [plan.pieces[index].sequence for index in sampling]
        result.tokens, logprobs, complete, failed = self._sampler.sample(drawn_from, sequences)
        result.logprobs = {sampling[row]: value for row, value in logprobs.items()}
        result.complete = {sampling[row] for row in complete}
        result.failed.update({sampling[row]: why for row, why in failed.items()})
        return result

    def _fail_bad_rows(self, plan: StepPlan, logits: Float32, result: StepResult) -> None:
        """A row with NaN or infinity fails its own sequence; the row is made harmless for those who read on."""
        bad = ~np.isfinite(logits.sum(axis=1))  # one pass that vectorises; both survive a sum
        if not bad.any():
            return
        logits[bad] = 0
        row = 0
        for index, piece in enumerate(plan.pieces):
            wanted = piece.end - piece.logits_from
            if bad[row : row + wanted].any():
                result.failed[index] = "the model gave numbers that are not finite"
            row += wanted

    def _prompt_logprobs(self, piece: Piece, logits: Float32) -> list[TokenLogprobs]:
        """Of the prompt tokens that follow the piece's; the prompt's last token is followed by none."""
        sequence = piece.sequence
        following = sequence.tokens[piece.start + 1 : min(piece.end + 1, sequence.prompt_tokens)]
        if not following:
            return []
        top = sequence.request.sampling.prompt_logprobs or 0
        chosen = np.array(following, np.int32)
        return self._sampler.logprobs(logits[: len(following)], chosen, [top] * len(following))
