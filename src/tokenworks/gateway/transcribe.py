"""A recording to segments of text (Whisper, arXiv 2212.04356, 4.5): windows of thirty seconds, each of which begins
where the last one's text ended; what comes out as a repetition, or is not believed, is written again at a higher
temperature; where nothing is said, nothing is written.

Every try is a request of its own to the worker, batched with everybody's; its sound is found again in the prefix cache.
"""

import hashlib
import math
import uuid
import zlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tokenworks.gateway.generation import Ticket, collect
from tokenworks.models.speech.vocabulary import TIME_STEP_S
from tokenworks.protocol.messages import Generate, Sound
from tokenworks.protocol.sampling import Sampling, SpeechRules

if TYPE_CHECKING:
    from tokenworks.gateway.serving import Serving, TextModel
    from tokenworks.kernels.backend import Float32

FRAME_S = 0.01
_FRAMES_A_TIME = round(TIME_STEP_S / FRAME_S)
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_REPETITIVE = 2.4
"""Text that deflates by more than this says the same thing again and again."""
_UNBELIEVED = -1.0
"""The mean log-probability of a text's tokens below which it is not believed."""
_SILENT = 0.6
"""The probability of silence above which a text that is not believed is none."""
_FORGETFUL = 0.5
"""Text written at a higher temperature is not shown to the model as what came before."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for."""

    language: str | None = None
    """A code; None: what the model hears."""
    translate: bool = False
    """To English."""
    prompt: tuple[int, ...] = ()
    """Tokens of what came before, in the client's words."""
    temperature: float = 0.0
    """0: by turns from 0 up."""
    measures_silence: bool = False
    """Of every window, not only where its text is not believed."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of speech."""

    seek: int
    """The frame that its window began with."""
    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...]
    """With the times at both ends."""
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class _Written:
    """A window's text."""

    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float = 0.0

    @property
    def good(self) -> bool:
        return self.compression_ratio <= _REPETITIVE and self.avg_logprob >= _UNBELIEVED


class Transcriber:
    """Of one request. `language` is known when `segments` has given the first one, or ended."""

    def __init__(self, serving: "Serving", model: "TextModel", mels: "Float32", wish: Wish) -> None:
        """`mels`: the whole recording's spectrogram [frames, bins]."""
        assert model.hearing is not None
        self._serving, self._model, self._mels, self._wish = serving, model, mels, wish
        self._words, self._heard = model.hearing.words, model.hearing.tokens
        self._frames = _FRAMES_A_TIME * self._heard
        self._room = model.context_tokens - self._heard
        self.language = wish.language or "en"

    async def segments(self) -> AsyncGenerator[Segment, None]:
        """In the order in which they are spoken. Raises what `generate` does."""
        seek, before = 0, self._wish.prompt
        if self._words.languages and self._wish.language is None and len(self._mels):
            self.language = await self._heard_language(self._sound(0))
        while seek < len(self._mels):
            frames = min(self._frames, len(self._mels) - seek)
            written = await self._window(self._sound(seek), before)
            if written is None:
                seek += frames
                continue
            found, advance = cut(written.tokens, self._words.times_from, frames)
            for start, end, tokens in found:
                text = self._text(tokens)
                if text.strip() and start != end:
                    quality = (written.temperature, written.avg_logprob, written.compression_ratio)
                    times = (seek * FRAME_S + start * TIME_STEP_S, seek * FRAME_S + end * TIME_STEP_S)
                    yield Segment(seek, *times, text, tokens, *quality, written.no_speech_prob)
                    before = (*before, *tokens)[-self._room :]
            if written.temperature > _FORGETFUL:
                before = ()
            seek += advance

    def _sound(self, seek: int) -> Sound:
        mels = self._mels[seek : seek + self._frames].astype("<f4").tobytes()
        return Sound(self._heard, mels, hashlib.blake2b(mels, digest_size=24).digest())

    async def _heard_language(self, sound: Sound) -> str:
        languages = self._words.languages
        (token,), _ = await self._run(sound, [self._words.start], SpeechRules(only=tuple(languages.values())), 1)
        return next(code for code, number in languages.items() if number == token)

    async def _window(self, sound: Sound, before: Sequence[int]) -> _Written | None:
        """None: there is silence."""
        words = self._words
        # Half of the room is for what came before, with the token that says so; half for what is written now.
        told = [words.previous, *before[-(self._room // 2 - 1) :]] if before else []
        prompt = [*told, *words.prompt(self.language, self._wish.translate)]
        most = min(self._room // 2, self._room - len(prompt))
        temperatures = (self._wish.temperature,) if self._wish.temperature else _TEMPERATURES
        written, silence = None, None
        for temperature in temperatures:
            tokens, logprobs = await self._run(sound, prompt, words.rules, most, temperature)
            mean = sum(logprobs) / max(1, len(logprobs))
            written = _Written(tokens, temperature, mean, _compression(self._text(tokens)))
            if written.good and not self._wish.measures_silence:
                break
            if silence is None:
                silence = await self._silence(sound, [*told, words.start])
            if written.good:
                break
            if silence > _SILENT and mean < _UNBELIEVED:
                return None
        assert written is not None
        return written if silence is None else replace(written, no_speech_prob=silence)

    async def _silence(self, sound: Sound, prompt: list[int]) -> float:
        """The probability that nothing is said."""
        _, logprobs = await self._run(sound, prompt, SpeechRules(only=(self._words.silence,)), 1)
        return math.exp(logprobs[0])

    async def _run(
        self, sound: Sound, prompt: Sequence[int], rules: SpeechRules, most: int, temperature: float = 0.0
    ) -> tuple[tuple[int, ...], list[float]]:
        """What the model writes behind a prompt, and the tokens' log-probabilities."""
        sampling = Sampling(max_tokens=most, seed=0, temperature=temperature, logprobs=0, speech=rules)
        ids = (*(0,) * sound.tokens, *prompt)
        request = Generate(f"heard-{uuid.uuid4().hex}", ids, sampling, sound=sound)
        ticket = Ticket(self._model.name, self._model.vocabulary, (request,))
        (whole,) = await collect(self._serving.pool, self._serving.metrics, ticket)
        return tuple(whole.token_ids), [each.logprob for each in whole.logprobs]

    def _text(self, tokens: Sequence[int]) -> str:
        return self._model.tokenizer.decode([each for each in tokens if each < self._words.end], skip_special=True)


Cut = tuple[int, int, tuple[int, ...]]
"""A segment of a window: begin and end, in steps of TIME_STEP_S; its tokens."""


def cut(tokens: Sequence[int], times_from: int, frames: int) -> tuple[list[Cut], int]:
    """A window's segments, and by how many frames the next window begins later: behind the last segment that has ended
    in this one, or behind all of it when the last text's end is that of the speech."""
    is_time = [token >= times_from for token in tokens]
    borders = [at for at in range(1, len(tokens)) if is_time[at] and is_time[at - 1]]
    ends_alone = is_time[-2:] == [False, True]
    if ends_alone and borders:
        borders.append(len(tokens))
    segments: list[Cut] = []
    for begin, end in zip([0, *borders], borders, strict=False):
        piece = tuple(tokens[begin:end])
        segments.append((piece[0] - times_from, piece[-1] - times_from, piece))
    if not segments:
        said = [token - times_from for token, time in zip(tokens, is_time, strict=True) if time]
        end = said[-1] if said and said[-1] else frames // _FRAMES_A_TIME
        return [(0, end, tuple(tokens))], frames
    advance = segments[-1][1] * _FRAMES_A_TIME
    return segments, frames if ends_alone or not 0 < advance <= frames else advance


def _compression(text: str) -> float:
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
