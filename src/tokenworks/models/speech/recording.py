"""The bytes of a sound file to samples of one channel at Whisper's rate, within limits: clients are not trusted."""

import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tokenworks.kernels.backend import Float32
from tokenworks.models.speech.mel import RATE
from tokenworks.protocol.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from soundfile import SoundFile

MOST_SECONDS = 2 * 3600
"""A longer recording is refused."""
_BLOCK_SECONDS = 30
_MOST_RATE = 768_000
_ZEROS = 16
"""Of the sinc, to each side."""
_ROLL_OFF = 0.94
"""Of the highest frequency that both rates have: what lies above it fades."""
_KAISER_BETA = 9.0


def open_recording(data: bytes, param: str) -> Float32:
    """[samples] at RATE, channels mixed. Raises InvalidRequest naming `param`, EngineError without the library."""
    try:
        import soundfile
    except (ImportError, OSError):  # the latter where it has no libsndfile
        raise EngineError("this server reads no sound files: it needs `pip install 'tokenworks[audio]'`") from None
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate: int = file.samplerate
            if rate > _MOST_RATE:
                raise InvalidRequest(
                    f"the file has {rate} samples a second; at most {_MOST_RATE} are taken", param=param
                )
            blocks: list[Float32] = []
            seconds = 0.0
            for block in resampled(_blocks(file), rate):
                blocks.append(block)
                seconds += len(block) / RATE
                if seconds > MOST_SECONDS:
                    raise InvalidRequest(
                        f"the recording is longer than {MOST_SECONDS} s, the most that is taken; cut it", param=param
                    )
    except soundfile.LibsndfileError as error:
        raise InvalidRequest(
            f"the file cannot be read as sound ({str(error).rstrip('.')}): wav, flac, ogg and mp3 are known; "
            "`ffmpeg -i FILE out.flac` makes one of many others",
            param=param,
        ) from None
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _blocks(file: "SoundFile") -> Iterator[Float32]:
    count = _BLOCK_SECONDS * file.samplerate
    while len(block := file.read(count, dtype="float32", always_2d=True)):
        yield np.nan_to_num(block.mean(axis=1))


def resampled(blocks: Iterator[Float32], rate: int) -> Iterator[Float32]:
    """Samples at `rate` a second, block after block, as samples at RATE: a sinc under a Kaiser window (Smith, Digital
    Audio Resampling, 2002), whose values for each of the places between two samples are computed once."""
    common = math.gcd(rate, RATE)
    up, down = RATE // common, rate // common
    if up == down:
        yield from blocks
        return
    width = _ROLL_OFF * min(1.0, up / down)
    reach = math.ceil(_ZEROS / width)
    starts, rest = np.divmod(np.arange(up) * down, up)
    times = np.arange(1 - reach, reach + 1) - rest[:, None] / up
    inside = np.sqrt(np.maximum(0, 1 - (times / reach) ** 2))
    taps = (width * np.sinc(width * times) * np.i0(_KAISER_BETA * inside) / np.i0(_KAISER_BETA)).astype(np.float32)
    kept, taken, made = np.zeros(reach - 1, np.float32), 0, 0

    def convert(samples: Float32) -> tuple[Float32, Float32]:
        """All whole periods of the samples, and what is left."""
        periods = max(0, (len(samples) - 2 * reach) // down)
        out = np.empty((periods, up), np.float32)
        if periods:
            windows = np.lib.stride_tricks.sliding_window_view(samples, 2 * reach)
            for phase, start in enumerate(starts.tolist()):
                out[:, phase] = windows[start : start + periods * down : down] @ taps[phase]
        return out.ravel(), samples[periods * down :]

    for block in blocks:
        taken += len(block)
        out, kept = convert(np.concatenate([kept, block]))
        made += len(out)
        yield out
    out, _ = convert(np.concatenate([kept, np.zeros(2 * reach + 2 * down, np.float32)]))
    yield out[: -(-taken * up // down) - made]
