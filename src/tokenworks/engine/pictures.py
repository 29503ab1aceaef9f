"""Pictures to features, between steps: a part of the encoder at a time, so that texts go on meanwhile.

Features are kept by their picture's hash while there is room, the latest used longest: the next question about the same
picture finds them, as does a sequence that was preempted.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

import numpy as np

from tokenworks.engine.plan import StepPlan
from tokenworks.engine.sequence import Sequence
from tokenworks.kernels.backend import Executable, Float32, Int32, StepBatch
from tokenworks.models.vision.pixels import EncoderStep, Pixels
from tokenworks.models.vision.positions import along_axes
from tokenworks.protocol.messages import Picture

KEPT_BYTES = 128 << 20
"""Of features, the newest picture's aside."""


class PictureEncoder:
    """The sight of one model."""

    def __init__(self, executable: Executable, pixels: Pixels, *, sees_ahead: bool, along_axes: bool) -> None:
        """`sees_ahead`, `along_axes`: as VisionConfig says."""
        self._executable, self._pixels = executable, pixels
        self.sees_ahead, self._along_axes = sees_ahead, along_axes
        self._features: OrderedDict[bytes, Float32] = OrderedDict()
        self._kept_bytes = 0
        self._current: tuple[bytes, EncoderStep] | None = None
        self._part = 0
        self.encoded = 0
        """Pictures."""

    def objection(self, pictures: SequenceOf[Picture], prompt_tokens: int) -> str | None:
        """What is wrong with a prompt's pictures."""
        end = 0
        for number, picture in enumerate(pictures):
            if not end <= picture.at <= picture.end <= prompt_tokens:
                return f"picture {number} stands at tokens {picture.at} to {picture.end} of {prompt_tokens}"
            if (error := self._pixels.objection(picture)) is not None:
                return error
            end = picture.end
        return None

    def ready(self, picture: Picture) -> bool:
        """Its features are there; they stay until the next `work`."""
        return picture.digest in self._features

    def work(self, missing: SequenceOf[Picture]) -> None:
        """The next part of the picture under way if it is still missing, else the first part of the first one."""
        if self._current is None or all(self._current[0] != picture.digest for picture in missing):
            self._current, self._part = (missing[0].digest, self._pixels.step(missing[0])), 0
        digest, step = self._current
        rows = self._executable.run(step.batch, self._part)
        self._part += 1
        if self._part == self._executable.parts:
            features = np.empty(rows.shape, np.float32)
            features[step.order] = rows
            self._keep(digest, features)
            self._current = None
            self.encoded += 1

    def show(self, plan: StepPlan, batch: StepBatch) -> StepBatch:
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
                    features.append(self._of(picture)[first - picture.at : last - picture.at])
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

    def _of(self, picture: Picture) -> Float32:
        self._features.move_to_end(picture.digest)
        return self._features[picture.digest]

    def _keep(self, digest: bytes, features: Float32) -> None:
        self._features[digest] = features
        self._kept_bytes += features.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._features) > 1:
            _, dropped = self._features.popitem(last=False)
            self._kept_bytes -= dropped.nbytes


def _axes(sequence: Sequence, start: int, end: int) -> Int32:
    """[3, end - start] of a sequence with pictures: its output goes on behind its prompt along all axes alike."""
    if sequence.axes is None:
        sequence.axes = along_axes(sequence.prompt_tokens, sequence.request.pictures)
    prompt = sequence.axes[:, start:end]
    behind = np.arange(max(start, sequence.prompt_tokens), end) - sequence.prompt_tokens
    output = np.broadcast_to(sequence.axes[:, -1].max() + 1 + behind, (3, len(behind)))
    return np.concatenate([prompt, output], axis=1).astype(np.int32)


def runnable(
    pictures: Iterable[Picture], start: int, end: int, ready: Callable[[Picture], bool], whole: bool
) -> tuple[int, Picture | None]:
    """How far tokens from `start` to `end` can run: not into a picture without features, which is returned, and with
    `whole` not into one that does not end there too."""
    for picture in pictures:
        if picture.end > start and picture.at < end:
            if not ready(picture):
                return max(start, picture.at), picture
            if whole and picture.end > end:
                return max(start, picture.at), None
    return end, None
