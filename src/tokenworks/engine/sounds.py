"""Sounds that requests begin with: encoded between steps, then made K and V of, in chunks like a prompt."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from tokenworks.engine.features import Features
from tokenworks.engine.plan import StepPlan
from tokenworks.kernels.backend import Executable, StepBatch
from tokenworks.models.speech.config import SpeechConfig
from tokenworks.models.speech.decoder import HEAR, WRITE
from tokenworks.models.speech.encoder import STRIDE, frames_of
from tokenworks.models.vision.pixels import EncoderStep
from tokenworks.protocol.messages import Generate, Medium, Sound


class SoundEncoder:
    """The hearing of one model."""

    sees_ahead = False

    def __init__(self, executable: Executable, config: SpeechConfig) -> None:
        self._config = config
        self._features: Features[Sound] = Features(executable, self._step)

    @property
    def encoded(self) -> int:
        return self._features.made

    def objection(self, request: Generate) -> str | None:
        sound, config = request.sound, self._config
        if sound is None or request.pictures:
            return "this model writes down what it hears: a request has one sound, and no pictures"
        if (sound.at, sound.tokens) != (0, config.heard) or len(request.prompt_ids) <= config.heard:
            return (
                f"the sound takes {sound.tokens} tokens from {sound.at}; the first {config.heard} of more were expected"
            )
        of_frame = 4 * config.bins
        if len(sound.mels) % of_frame or len(sound.mels) > of_frame * STRIDE * config.heard:
            return (
                f"the sound has {len(sound.mels)} bytes; at most {STRIDE * config.heard} frames of {of_frame} are taken"
            )
        return None

    def runnable(self, media: Sequence[Medium], start: int, end: int) -> tuple[int, Medium | None]:
        """What is heard and what is written run apart."""
        (sound,) = cast("Sequence[Sound]", media)
        if start >= sound.end:
            return end, None
        return (min(end, sound.end), None) if self._features.ready(sound) else (start, sound)

    def work(self, missing: Sequence[Medium]) -> None:
        self._features.work(cast("Sequence[Sound]", missing))

    def batches(
        self, plan: StepPlan, assemble: Callable[[StepPlan], StepBatch]
    ) -> Iterator[tuple[StepBatch, int | None]]:
        count = self._config.heard
        heard = tuple(piece for piece in plan.pieces if piece.start < count)
        written = tuple(piece for piece in plan.pieces if piece.start >= count)
        if heard:
            rows = [
                self._features.of(sound)[piece.start : piece.end]
                for piece in heard
                if (sound := piece.sequence.request.sound) is not None
            ]
            yield replace(assemble(replace(plan, pieces=heard)), inputs=np.concatenate(rows)), HEAR
        if written:
            batch = assemble(replace(plan, pieces=written))
            yield replace(batch, axes=(batch.positions - count)[None]), WRITE

    def _step(self, sound: Sound) -> EncoderStep:
        config = self._config
        places = np.arange(config.heard, dtype=np.int32)
        mels = np.frombuffer(sound.mels, "<f4").reshape(-1, config.bins)
        batch = StepBatch(
            tokens=np.zeros_like(places),
            positions=places,
            row_starts=np.array([0, config.heard], np.int32),
            block_tables=np.empty((1, 0), np.int32),
            logit_rows=np.empty(0, np.int32),
            inputs=frames_of(mels.astype(np.float32), config),
        )
        return EncoderStep(batch, places)
