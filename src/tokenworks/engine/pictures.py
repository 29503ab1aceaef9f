"""Pictures in requests: encoded between steps, and shown to the model where the prompt has placeholders."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import cast

import numpy as np

from tokenworks.engine.features import Features
from tokenworks.engine.plan import StepPlan
from tokenworks.engine.sequence import Sequence
from tokenworks.kernels.backend import Executable, Float32, Int32, StepBatch
from tokenworks.models.vision.pixels import Pixels
from tokenworks.models.vision.positions import along_axes
from tokenworks.protocol.messages import Generate, Medium, Picture


class PictureEncoder:
    """The sight of one model."""

    def __init__(self, executable: Executable, pixels: Pixels, *, sees_ahead: bool, along_axes: bool) -> None:
        """`sees_ahead`, `along_axes`: as VisionConfig says."""
        self._pixels = pixels
        self.sees_ahead, self._along_axes = sees_ahead, along_axes
        self._features: Features[Picture] = Features(executable, pixels.step)

    @property
    def encoded(self) -> int:
        return self._features.made

    def objection(self, request: Generate) -> str | None:
        if request.sound is not None:
            return "this model hears nothing"
        end, prompt_tokens = 0, len(request.prompt_ids)
        for number, picture in enumerate(request.pictures):
            if not end <= picture.at <= picture.end <= prompt_tokens:
                return f"picture {number} stands at tokens {picture.at} to {picture.end} of {prompt_tokens}"
            if (error := self._pixels.objection(picture)) is not None:
                return error
            end = picture.end
        return None

    def runnable(self, media: SequenceOf[Medium], start: int, end: int) -> tuple[int, Medium | None]:
        """Not into a picture without features, nor where its tokens see each other into one that does not end there."""
        for picture in cast("SequenceOf[Picture]", media):
            if picture.end > start and picture.at < end:
                if not self._features.ready(picture):
                    return max(start, picture.at), picture
                if self.sees_ahead and picture.end > end:
                    return max(start, picture.at), None
        return end, None

    def work(self, missing: SequenceOf[Medium]) -> None:
        self._features.work(cast("SequenceOf[Picture]", missing))

    def batches(
        self, plan: StepPlan, assemble: Callable[[StepPlan], StepBatch]
    ) -> Iterator[tuple[StepBatch, int | None]]:
        yield self._show(plan, assemble(plan)), None

    def _show(self, plan: StepPlan, batch: StepBatch) -> StepBatch:
        """`batch` of the plan with what its pictures add."""
        if not any(piece.sequence.request.pictures for piece in plan.pieces):
            return batch
        rows: list[Int32] = []
        features: list[Float32] = []
        ends = batch.positions + 1
        axes = np.tile(batch.positions, (3, 1)) if self._along_axes else None
        row = 0
        for piece in plan.pieces:
            start, end = piece.start, piece.end
            for picture in piece.sequence.request.pictures:
                first, last = max(start, picture.at), min(end, picture.end)
                if first < last:
                    rows.append(np.arange(row + first - start, row + last - start, dtype=np.int32))
                    features.append(self._features.of(picture)[first - picture.at : last - picture.at])
                    if self.sees_ahead:
                        ends[rows[-1]] = picture.end
            if axes is not None and piece.sequence.request.pictures:
                axes[:, row : row + end - start] = _axes(piece.sequence, start, end)
            row += end - start
        return replace(
            batch,
            features=np.concatenate(features) if features else None,
            feature_rows=np.concatenate(rows) if rows else None,
            axes=axes,
            ends=ends if self.sees_ahead and rows else None,
        )


def _axes(sequence: Sequence, start: int, end: int) -> Int32:
    """[3, end - start] of a sequence with pictures: its output goes on behind its prompt along all axes alike."""
    if sequence.axes is None:
        sequence.axes = along_axes(sequence.prompt_tokens, sequence.request.pictures)
    prompt = sequence.axes[:, start:end]
    behind = np.arange(max(start, sequence.prompt_tokens), end) - sequence.prompt_tokens
    output = np.broadcast_to(sequence.axes[:, -1].max() + 1 + behind, (3, len(behind)))
    both: Int32 = np.concatenate([prompt, output], axis=1).astype(np.int32)
    return both
