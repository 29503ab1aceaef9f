"""/v1/audio/transcriptions and /v1/audio/translations (OpenAI's): a recording to text, or to English text."""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from tokenworks.gateway.http import invalid_field, json_response, openai_error, read_bytes
from tokenworks.gateway.multipart import read_form
from tokenworks.gateway.serving import Serving, TextModel
from tokenworks.gateway.stream import DONE, EventStream, data_event, until_disconnect
from tokenworks.gateway.subtitles import subrip, webvtt
from tokenworks.gateway.transcribe import FRAME_S, Segment, Transcriber, Wish
from tokenworks.models.speech.languages import LANGUAGES
from tokenworks.protocol.errors import InvalidRequest

File = Annotated[bytes, Meta(min_length=1, extra_json_schema={"format": "binary"})]


class TranslationBody(msgspec.Struct, kw_only=True):
    """POST /v1/audio/translations, a form."""

    file: File
    model: str
    prompt: str = ""
    """What was said before, or words as they should be written."""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """0: greedy, and higher where that does not make a believable text."""


class TranscriptionBody(TranslationBody, kw_only=True):
    """POST /v1/audio/transcriptions, a form."""

    language: str | None = None
    """A code (`en`) or a name (`english`); None: what the model hears."""
    timestamp_granularities: list[Literal["segment", "word"]] = []
    stream: bool = False


class Duration(msgspec.Struct):
    """What was used."""

    seconds: int
    type: Literal["duration"] = "duration"


class TranscriptionSegment(msgspec.Struct):
    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Transcription(msgspec.Struct):
    """`response_format` json; the rest is in verbose_json alone."""

    text: str
    usage: Duration
    task: Literal["transcribe", "translate"] | UnsetType = UNSET
    language: str | UnsetType = UNSET
    duration: float | UnsetType = UNSET
    """Seconds."""
    segments: list[TranscriptionSegment] | UnsetType = UNSET


class TextDelta(msgspec.Struct):
    """An event of a stream: a segment's text."""

    delta: str
    type: Literal["transcript.text.delta"] = "transcript.text.delta"


class TextDone(msgspec.Struct):
    """A stream's last event."""

    text: str
    usage: Duration
    type: Literal["transcript.text.done"] = "transcript.text.done"


_Body = TypeVar("_Body", bound=TranslationBody)


async def transcriptions(request: Request) -> ASGIApp:
    """POST /v1/audio/transcriptions."""
    body = await _read(request, TranscriptionBody)
    if "word" in body.timestamp_granularities:
        raise InvalidRequest("times are those of segments; words have none", param="timestamp_granularities")
    return await _answer(request, body, body.language, translate=False, stream=body.stream)


async def translations(request: Request) -> ASGIApp:
    """POST /v1/audio/translations."""
    return await _answer(request, await _read(request, TranslationBody), None, translate=True, stream=False)


async def _read(request: Request, type_: type[_Body]) -> _Body:
    """The form's fields. Raises InvalidRequest naming the one at fault."""
    serving: Serving = request.app.state.gateway
    fields: dict[str, object] = {}
    body = await read_bytes(request, serving.max_audio_bytes)
    lists: dict[str, list[str]] = {}
    for part in read_form(body, request.headers.get("content-type", "")):
        if part.name.endswith("[]"):
            lists.setdefault(part.name.removesuffix("[]"), []).append(part.text)
        else:
            fields[part.name] = part.data if part.name == "file" else part.text
    try:
        return msgspec.convert(fields | lists, type_, strict=False)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None


async def _answer(
    request: Request, body: TranslationBody, language: str | None, *, translate: bool, stream: bool
) -> ASGIApp:
    serving: Serving = request.app.state.gateway
    model = await serving.transcriber(body.model)
    assert model.hearing is not None
    words = model.hearing.words
    if translate and not words.languages:
        raise InvalidRequest(f"the model {model.name!r} knows English only; it translates nothing", param="model")
    wish = Wish(
        language=None if language is None else _code(language, model),
        translate=translate,
        prompt=tuple(
            await model.encode(" " + body.prompt.strip(), special=False, param="prompt") if body.prompt else ()
        ),
        temperature=body.temperature,
        measures_silence=body.response_format == "verbose_json",
    )
    with serving.admitted(1):
        mels = await until_disconnect(request, serving.heard(model, body.file, "file"))
    transcriber = Transcriber(serving, model, mels, wish)
    duration_s = len(mels) * FRAME_S
    if stream:
        return EventStream(_events(serving, transcriber, duration_s), lambda error: data_event(openai_error(error)))
    with serving.admitted(1):
        segments = await until_disconnect(request, _all(transcriber))
    return _whole(body.response_format, transcriber, segments, duration_s, translate)


def _code(language: str, model: TextModel) -> str:
    assert model.hearing is not None
    known = model.hearing.words.languages or {"en": 0}
    wanted = language.strip().lower()
    code = next((code for code, name in LANGUAGES.items() if wanted in (code, name)), wanted)
    if code not in known:
        raise InvalidRequest(
            f"{language[:50]!r} is no language that the model {model.name!r} knows: {', '.join(known)}",
            param="language",
        )
    return code


async def _all(transcriber: Transcriber) -> list[Segment]:
    return [segment async for segment in transcriber.segments()]


async def _events(serving: Serving, transcriber: Transcriber, duration_s: float) -> AsyncGenerator[bytes, None]:
    text = ""
    with serving.admitted(1):
        async with aclosing(transcriber.segments()) as segments:
            async for segment in segments:
                delta = segment.text if text else segment.text.lstrip()
                text += delta
                yield data_event(TextDelta(delta))
    yield data_event(TextDone(text, _used(duration_s)))
    yield DONE


def _whole(how: str, transcriber: Transcriber, segments: list[Segment], duration_s: float, translate: bool) -> Response:
    """The reply in the format that was asked for."""
    text = "".join(segment.text for segment in segments).strip()
    if how == "json":
        return json_response(Transcription(text, _used(duration_s)))
    if how == "verbose_json":
        return json_response(
            Transcription(
                task="translate" if translate else "transcribe",
                language=LANGUAGES.get(transcriber.language, transcriber.language),
                duration=round(duration_s, 2),
                text=text,
                segments=[_verbose(number, segment) for number, segment in enumerate(segments)],
                usage=_used(duration_s),
            )
        )
    write = {"srt": subrip, "vtt": webvtt}.get(how)
    return Response(write(segments) if write else text + "\n", media_type="text/plain")


def _verbose(number: int, segment: Segment) -> TranscriptionSegment:
    return TranscriptionSegment(
        id=number,
        seek=segment.seek,
        start=round(segment.start_s, 2),
        end=round(segment.end_s, 2),
        text=segment.text,
        tokens=list(segment.tokens),
        temperature=segment.temperature,
        avg_logprob=segment.avg_logprob,
        compression_ratio=segment.compression_ratio,
        no_speech_prob=segment.no_speech_prob,
    )


def _used(duration_s: float) -> Duration:
    return Duration(math.ceil(duration_s))
