"""Sound files to samples: the same tones at another rate, in any pieces; what cannot be read is refused with a cure."""

import io
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from tokenworks.models.speech import recording
from tokenworks.models.speech.recording import open_recording, resampled
from tokenworks.protocol.errors import EngineError, InvalidRequest


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def pieces(samples: np.ndarray, *sizes: int) -> Iterator[np.ndarray]:
    yield from np.split(samples, np.cumsum(sizes))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 15_999])
def test_a_tone_is_the_same_at_another_rate(rate: int) -> None:
    ours = np.concatenate(list(resampled(pieces(tone(700, rate)), rate)))
    assert len(ours) == 16_000
    np.testing.assert_allclose(ours[200:-200], tone(700, 16_000)[200:-200], atol=2e-4)


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_what_the_lower_rate_cannot_hold_is_silent(rate: int) -> None:
    ours = np.concatenate(list(resampled(pieces(tone(9000, rate)), rate)))
    assert np.abs(ours[200:-200]).max() < 1e-3


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_pieces_do_not_matter(rate: int) -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, 9001).astype(np.float32)
    whole = np.concatenate(list(resampled(pieces(samples), rate)))
    cut = np.concatenate(list(resampled(pieces(samples, 1, 0, 700, 3001), rate)))
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    assert len(whole) == -(-9001 * 16_000 // rate)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_files_of_every_kind(kind: str) -> None:
    file = io.BytesIO()
    both = np.stack([tone(440, 48_000), 0 * tone(440, 48_000)], axis=1)
    soundfile.write(file, both, 48_000, format=kind)
    ours = open_recording(file.getvalue(), "file")
    assert 15_990 <= len(ours) <= 16_700  # MP3 has whole frames only
    middle = ours[4000:12_000]
    assert abs(float(np.sqrt((middle**2).mean())) - 0.25 / np.sqrt(2)) < 0.01  # both channels' mean


def test_an_empty_file_has_no_samples() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(0, np.float32), 44_100, format="WAV")
    assert len(open_recording(file.getvalue(), "file")) == 0


def test_what_is_no_sound_is_refused_with_the_cure() -> None:
    with pytest.raises(InvalidRequest, match=r"cannot be read as sound .*wav, flac, ogg and mp3.*ffmpeg") as caught:
        open_recording(b"no sound at all", "file")
    assert caught.value.param == "file"


def test_too_long_a_recording_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_SECONDS", 2)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 3), 8000, format="WAV")
    with pytest.raises(InvalidRequest, match="longer than 2 s"):
        open_recording(file.getvalue(), "file")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(EngineError, match=r"pip install 'tokenworks\[audio\]'"):
        open_recording(b"", "file")
