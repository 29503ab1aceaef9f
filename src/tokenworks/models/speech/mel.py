"""A recording as Whisper is shown it (arXiv 2212.04356, 2.2): a spectrogram on the mel scale, of logarithms.

Windows of 25 ms, 10 ms apart; the scale's triangles are Slaney's (Auditory Toolbox, 1998), each of the same area; what
is 80 dB below the loudest is silence; then about -1 to 1.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

RATE = 16_000
"""Samples a second."""
HOP = 160
"""Samples from one frame to the next."""
FRAMES_A_SECOND = RATE // HOP
_WINDOW = 400
_LEAST = 1e-10
_FRAMES_AT_ONCE = 3000
"""So that an hour's spectrum needs little memory beside its result."""

_LINEAR_HZ = 200 / 3
"""A mel, below ..."""
_LOGARITHMIC_FROM_HZ = 1000.0
_LOGARITHMIC_STEP = math.log(6.4) / 27
"""... and above this frequency."""


def log_mel(samples: Float32, bins: int) -> Float32:
    """[frames, bins] of a recording at RATE, [samples] from -1 to 1: a frame for every HOP samples begun and ended.

    Silence follows the recording, and before it lies its own beginning, reversed.
    """
    frames, half = len(samples) // HOP, _WINDOW // 2
    before = samples[1 : half + 1][::-1]
    padded = np.concatenate([np.zeros(half - len(before), np.float32), before, samples, np.zeros(half, np.float32)])
    rows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)).astype(np.float32)
    triangles = _triangles(bins)
    made = np.empty((frames, bins), np.float32)
    for at in range(0, frames, _FRAMES_AT_ONCE):
        end = min(frames, at + _FRAMES_AT_ONCE)
        power = np.abs(np.fft.rfft(rows[at:end] * hann)).astype(np.float32) ** 2
        made[at:end] = np.log10(np.maximum(power @ triangles, np.float32(_LEAST)))
    if frames:
        np.maximum(made, made.max() - 8, out=made)
    return (made + np.float32(4)) / np.float32(4)


@cache
def _triangles(bins: int) -> Float32:
    """[frequencies, bins]"""
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    corners = _hertz(np.linspace(0, _mel(RATE / 2), bins + 2))
    rising = (frequencies[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - frequencies[:, None]) / np.diff(corners)[1:]
    heights = 2 / (corners[2:] - corners[:-2])
    bands: npt.NDArray[np.float32] = (np.maximum(0, np.minimum(rising, falling)) * heights).astype(np.float32)
    return bands


def _mel(hertz: float) -> float:
    if hertz < _LOGARITHMIC_FROM_HZ:
        return hertz / _LINEAR_HZ
    return _LOGARITHMIC_FROM_HZ / _LINEAR_HZ + math.log(hertz / _LOGARITHMIC_FROM_HZ) / _LOGARITHMIC_STEP


def _hertz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bend = _LOGARITHMIC_FROM_HZ / _LINEAR_HZ
    above = _LOGARITHMIC_FROM_HZ * np.exp(_LOGARITHMIC_STEP * (mels - bend))
    return np.where(mels < bend, mels * _LINEAR_HZ, above)
