"""Recordings through the real server, to Whisper tiny.en; asked by OpenAI's client."""

import asyncio
import io
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile
from running_factory import Factory, start

SAID = "Ever tried, ever failed. No matter, try again. Fail again. Fail better."
SECONDS = 10


@pytest.fixture(scope="module")
def factory(whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    factory = start(Path(__file__).with_name("speech_factory.py"), tmp_path_factory.mktemp("data"), whisper)
    yield factory
    factory.process.send_signal(signal.SIGTERM)
    assert factory.process.wait(20) == 0


def file_of(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def voice(recording: Path) -> np.ndarray:
    samples, rate = soundfile.read(recording)
    assert rate == 16_000
    return samples


@pytest.fixture(scope="module")
def long(voice: np.ndarray) -> bytes:
    """54 s: the voice three times, and pauses."""
    pause = np.zeros(12 * 16_000)
    return file_of(np.concatenate([voice, pause, voice, pause, voice]))


def ask(client: openai.OpenAI, data: bytes, **how: object) -> object:
    return client.audio.transcriptions.create(model="whisper", file=("a.wav", data), **how)  # type: ignore[call-overload]


def test_a_recording_is_written_down(client: openai.OpenAI, recording: Path) -> None:
    reply = ask(client, recording.read_bytes())
    assert reply.text == SAID
    assert (reply.usage.type, reply.usage.seconds) == ("duration", SECONDS)


@pytest.mark.parametrize(("kind", "rate"), [("FLAC", 48_000), ("OGG", 24_000), ("MP3", 44_100)])
def test_in_any_kind_of_file(client: openai.OpenAI, voice: np.ndarray, kind: str, rate: int) -> None:
    # Linear interpolation puts noise above 8 kHz, which must not matter.
    places = np.arange(int(len(voice) / 16_000 * rate)) / rate * 16_000
    stereo = np.stack([np.interp(places, np.arange(len(voice)), voice)] * 2, axis=1)
    assert ask(client, file_of(stereo, rate, kind)).text.lower().rstrip(".") == SAID.lower().rstrip(".")


def test_formats(client: openai.OpenAI, recording: Path) -> None:
    data = recording.read_bytes()
    assert ask(client, data, response_format="text") == SAID + "\n"
    subtitles = ask(client, data, response_format="srt")
    assert subtitles.startswith("1\n00:00:00,000 --> 00:00:")
    assert ask(client, data, response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 --> ")
    whole = ask(client, data, response_format="verbose_json", timestamp_granularities=["segment"])
    assert (whole.task, whole.language, whole.text) == ("transcribe", "english", SAID)
    assert whole.duration == pytest.approx(9.96, abs=0.011)
    assert "".join(segment.text for segment in whole.segments).strip() == SAID
    times = [time for segment in whole.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert times[-1] <= SECONDS
    for segment in whole.segments:
        assert segment.avg_logprob > -1
        assert segment.no_speech_prob < 0.5
        assert segment.tokens


def test_a_stream_is_the_same_text_piece_by_piece(client: openai.OpenAI, recording: Path) -> None:
    events = list(ask(client, recording.read_bytes(), stream=True))
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == SAID


def test_longer_than_a_window(client: openai.OpenAI, long: bytes) -> None:
    reply = ask(client, long, response_format="verbose_json")
    said = reply.text.lower()
    assert [said.count(words) for words in ("ever tried", "no matter", "fail better")] == [3, 3, 3]
    times = [time for segment in reply.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert 50 < times[-1] <= reply.duration
    assert len({segment.seek for segment in reply.segments}) >= 2


def test_silence_says_nothing(client: openai.OpenAI) -> None:
    assert ask(client, file_of(np.zeros(0))).text == ""
    assert ask(client, file_of(np.zeros(16_000 * 5))).text == ""


async def test_several_at_once_get_what_each_gets_alone(factory: Factory, voice: np.ndarray) -> None:
    files = [file_of(voice), file_of(voice[: 16_000 * 3]), file_of(voice[16_000 * 4 :])]
    async with openai.AsyncOpenAI(base_url=f"{factory.url}/v1", api_key="any", max_retries=0) as client:

        async def text(data: bytes) -> str:
            return (await client.audio.transcriptions.create(model="whisper", file=("a", data))).text

        alone = [await text(data) for data in files]
        together = await asyncio.gather(*(text(data) for data in files * 2))
    assert together == alone * 2
    assert len(set(alone)) == 3


async def test_a_workers_death_is_not_noticed(factory: Factory, long: bytes) -> None:
    async with openai.AsyncOpenAI(base_url=f"{factory.url}/v1", api_key="any", max_retries=0) as client:
        want = (await client.audio.transcriptions.create(model="whisper", file=("a", long))).text
        call = asyncio.create_task(client.audio.transcriptions.create(model="whisper", file=("a", long)))
        await asyncio.sleep(0.3)
        (worker,) = factory.workers()
        worker.kill()
        assert (await call).text == want


async def test_a_client_that_leaves_frees_the_engine(factory: Factory, http: httpx.Client, long: bytes) -> None:
    async with openai.AsyncOpenAI(base_url=f"{factory.url}/v1", api_key="any", max_retries=0) as client:
        call = asyncio.create_task(client.audio.transcriptions.create(model="whisper", file=("a", long)))
        assert await becomes(http, 1)
        call.cancel()
        assert await becomes(http, 0)


async def becomes(http: httpx.Client, wanted: int) -> bool:
    """So many sequences are in the engine, before long."""
    names = ("tokenworks_requests_running", "tokenworks_requests_waiting")
    for _ in range(200):
        lines = (await asyncio.to_thread(http.get, "/metrics")).text.splitlines()
        if sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(names)) == wanted:
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("how", "param", "complaint"),
    [
        ({"file": ("a.wav", b"nothing")}, "file", "cannot be read as sound"),
        ({"language": "de"}, "language", "'de' is no language that the model 'whisper' knows: en"),
        ({"temperature": 1.5}, "temperature", "<= 1"),
        ({"response_format": "xml"}, "response_format", "xml"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities", "words have none"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, recording: Path, how: dict[str, object], param: str, complaint: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(**{"model": "whisper", "file": recording, **how})  # type: ignore[call-overload]
    assert caught.value.param == param
    assert complaint in caught.value.message


def test_an_english_model_translates_nothing_and_chats_not(
    client: openai.OpenAI, http: httpx.Client, recording: Path
) -> None:
    form = {"model": (None, "whisper"), "file": ("a.wav", recording.read_bytes())}
    reply = http.post("/v1/audio/translations", files=form)
    assert reply.status_code == 400
    assert "knows English only" in reply.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="does not generate text"):
        client.chat.completions.create(model="whisper", messages=[{"role": "user", "content": "Hello?"}])


def test_too_large_a_file_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, bytes(5 << 20))
    assert caught.value.status_code == 413


def test_a_form_is_expected(http: httpx.Client) -> None:
    reply = http.post("/v1/audio/transcriptions", json={"model": "whisper"})
    assert reply.status_code == 400
    assert "multipart/form-data form was expected" in reply.json()["error"]["message"]
    reply = http.post("/v1/audio/transcriptions", files={"model": (None, "whisper")})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "file")
