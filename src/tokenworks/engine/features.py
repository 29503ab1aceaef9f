"""What encoders make of pictures and sounds between steps: parts of a program, so that texts go on meanwhile.

Features are kept by their medium's hash while there is room, the latest used longest: the next question about the same
picture finds them, as does a sequence that was preempted.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from tokenworks.engine.plan import StepPlan
from tokenworks.kernels.backend import Executable, Float32, StepBatch
from tokenworks.models.vision.pixels import EncoderStep
from tokenworks.protocol.messages import Generate, Medium

KEPT_BYTES = 128 << 20
"""Of features, the newest medium's aside."""

M = TypeVar("M", bound=Medium)


class Features(Generic[M]):
    """Of one encoder."""

    def __init__(self, executable: Executable, step: Callable[[M], EncoderStep]) -> None:
        self._executable, self._step = executable, step
        self._features: OrderedDict[bytes, Float32] = OrderedDict()
        self._kept_bytes = 0
        self._current: tuple[bytes, EncoderStep] | None = None
        self._part = 0
        self.made = 0
        """For so many media."""

    def ready(self, medium: M) -> bool:
        """They are there, and stay until the next `work`."""
        return medium.digest in self._features

    def of(self, medium: M) -> Float32:
        self._features.move_to_end(medium.digest)
        return self._features[medium.digest]

    def work(self, missing: Sequence[M]) -> None:
        """The next part of the medium under way if it is still missing, else the first part of the first one."""
        if self._current is None or all(self._current[0] != medium.digest for medium in missing):
            self._current, self._part = (missing[0].digest, self._step(missing[0])), 0
        digest, step = self._current
        rows = self._executable.run(step.batch, self._part)
        self._part += 1
        if self._part == self._executable.parts:
            features = np.empty(rows.shape, np.float32)
            features[step.order] = rows
            self._keep(digest, features)
            self._current = None
            self.made += 1

    def _keep(self, digest: bytes, features: Float32) -> None:
        self._features[digest] = features
        self._kept_bytes += features.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._features) > 1:
            _, dropped = self._features.popitem(last=False)
            self._kept_bytes -= dropped.nbytes


class MediaEncoder(Protocol):
    """What a model sees or hears with."""

    sees_ahead: bool
    """Tokens of a medium see each other: they run in one step."""

    @property
    def encoded(self) -> int:
        """Media so far."""

    def objection(self, request: Generate) -> str | None:
        """What is wrong with a request's media."""

    def runnable(self, media: Sequence[Medium], start: int, end: int) -> tuple[int, Medium | None]:
        """How far tokens from `start` to `end` can run, and the medium that they wait for there."""

    def work(self, missing: Sequence[Medium]) -> None:
        """Some of what the media wait for, the first one's first."""

    def batches(
        self, plan: StepPlan, assemble: Callable[[StepPlan], StepBatch]
    ) -> Iterator[tuple[StepBatch, int | None]]:
        """What to run for a plan, in order, with the program's part: the last one's result is the plan's."""
