"""What the transcriber asks of a worker that answers by a script: language, silence, temperatures, windows."""

import math
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tokenworks.gateway.serving import Hearing, TextModel
from tokenworks.gateway.transcribe import Segment, Transcriber, Wish
from tokenworks.models.speech.vocabulary import SpeechVocabulary
from tokenworks.models.text.tokenizer import ModelTokenizer
from tokenworks.protocol.messages import Finish, Generate, Ready, TokenChunk, TokenLogprobs
from tokenworks.telemetry.metrics import Metrics

HEARD, ROOM = 1500, 40
END, START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, PREVIOUS, SILENCE, T = 50, 51, 52, 53, 54, 55, 56, 57, 60
WORDS = SpeechVocabulary(
    start=START, previous=PREVIOUS, end=END, silence=SILENCE, times_from=T, transcribe=TRANSCRIBE, translate=TRANSLATE,
    languages={"en": ENGLISH, "de": GERMAN}, never=(), not_first=(),
)  # fmt: skip
Answer = Callable[[list[int], Generate], tuple[tuple[int, ...], float]]
"""From the prompt behind the sound, and the request, to tokens, and the log-probability of each."""


class Script:
    """A pool with one worker."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: list[tuple[list[int], Generate]] = []

    async def generate(self, model: str, request: Generate) -> AsyncGenerator[TokenChunk, None]:
        assert request.sound is not None
        prompt = list(request.prompt_ids[HEARD:])
        self.asked.append((prompt, request))
        tokens, logprob = self._answer(prompt, request)
        logprobs = tuple(TokenLogprobs(token, logprob, 1) for token in tokens)
        yield TokenChunk(request.request_id, tokens, logprobs, finish=Finish.LENGTH)


async def written(answer: Answer, frames: int = 2000, **wish: object) -> tuple[list[Segment], Script, Transcriber]:
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(200)}, "w0"))
    ready = Ready("transcribe", HEARD + ROOM, 200, 0, 0, {}, heard_tokens=HEARD, heard_tones=2)
    model = TextModel("m", ModelTokenizer(tokenizer, frozenset({END}), "", "", None), ready, None)
    model.hearing = Hearing(WORDS, HEARD, 2)
    script = Script(answer)
    mels = np.random.default_rng(1).uniform(-1, 1, (frames, 2)).astype(np.float32)
    serving = SimpleNamespace(pool=script, metrics=Metrics())
    transcriber = Transcriber(serving, model, mels, Wish(**wish))  # type: ignore[arg-type]
    return [segment async for segment in transcriber.segments()], script, transcriber


async def test_the_language_is_what_the_model_hears() -> None:
    def answer(prompt: list[int], request: Generate) -> tuple[tuple[int, ...], float]:
        return ((GERMAN,), -0.1) if prompt == [START] else ((T, 1, 2, T + 30), -0.1)

    segments, script, transcriber = await written(answer)
    assert transcriber.language == "de"
    assert [prompt for prompt, _ in script.asked] == [[START], [START, GERMAN, TRANSCRIBE]]
    rules = script.asked[0][1].sampling.speech
    assert rules is not None
    assert rules.only == (ENGLISH, GERMAN)
    assert [(each.text, each.start_s, each.end_s) for each in segments] == [("w1 w2", 0.0, 0.6)]


async def test_what_was_wished_for_is_in_the_prompt() -> None:
    told = tuple(range(1, 30))
    _, script, _ = await written(
        lambda prompt, request: ((T, 1, T + 9), -0.1), language="en", translate=True, prompt=told, temperature=0.3
    )
    ((prompt, request),) = script.asked
    assert prompt == [PREVIOUS, *told[-(ROOM // 2 - 1) :], START, ENGLISH, TRANSLATE]
    assert request.sampling.temperature == 0.3
    assert request.sampling.max_tokens == ROOM - len(prompt)


async def test_windows_go_on_where_the_text_ended_and_are_told_what_was_written() -> None:
    def answer(prompt: list[int], request: Generate) -> tuple[tuple[int, ...], float]:
        assert request.sound is not None
        if len(request.sound.mels) == 3000 * 8:
            return (T, 1, T + 100, T + 100, 2, T + 139, T + 139), -0.1
        return (T, 3, T + 20), -0.1

    segments, script, _ = await written(answer, frames=3250, language="en")
    assert [(each.seek, round(each.start_s, 2), each.text) for each in segments] == [
        (0, 0.0, "w1"),
        (0, 2.0, "w2"),
        (278, 2.78, "w3"),
    ]
    assert script.asked[1][0] == [PREVIOUS, T, 1, T + 100, T + 100, 2, T + 139, START, ENGLISH, TRANSCRIBE]


async def test_repetitions_are_written_again_hotter_and_then_forgotten() -> None:
    again = (T, *[1] * 200, T + 30)

    def answer(prompt: list[int], request: Generate) -> tuple[tuple[int, ...], float]:
        if request.sampling.speech is not None and request.sampling.speech.only:
            return (SILENCE,), math.log(0.25)
        return ((T, 1, 2, 3, T + 30) if request.sampling.temperature > 0.5 else again), -0.1

    segments, script, _ = await written(answer, frames=3100, language="en")
    assert [each.temperature for each in segments] == [0.6, 0.6]
    assert [round(each.no_speech_prob, 2) for each in segments] == [0.25, 0.25]
    told = [prompt for prompt, request in script.asked if request.sampling.temperature == 0]
    assert [START, ENGLISH, TRANSCRIBE] in told
    assert not any(PREVIOUS in prompt for prompt in told)


async def test_where_nobody_speaks_nothing_is_written() -> None:
    def answer(prompt: list[int], request: Generate) -> tuple[tuple[int, ...], float]:
        if request.sampling.speech is not None and request.sampling.speech.only:
            return (SILENCE,), math.log(0.9)
        return (T, 1, T + 30), -2.0

    segments, script, _ = await written(answer, language="en")
    assert segments == []
    assert len(script.asked) == 2


async def test_an_empty_recording_asks_nothing() -> None:
    segments, script, _ = await written(lambda prompt, request: ((), 0.0), frames=0)
    assert (segments, script.asked) == ([], [])
