"""A window's tokens to segments, and where the next window begins; segments to subtitles."""

import pytest

from tokenworks.gateway.subtitles import subrip, webvtt
from tokenworks.gateway.transcribe import Segment, cut

T = 100
"""The token that is 0 s."""


@pytest.mark.parametrize(
    ("tokens", "segments", "advance"),
    [
        # Two pieces that end and begin, and a third that goes on: the next window begins where the second one ended.
        ((T, 1, T + 50, T + 50, 2, 3, T + 90, T + 95, 4), [(0, 50), (50, 90)], 180),
        # The last one's end is the speech's: the window is done.
        ((T, 1, T + 50, T + 50, 2, T + 90), [(0, 50), (50, 90)], 3000),
        ((T + 2, 1, 2, T + 50), [(0, 50)], 3000),
        # No end at all: as long as the window.
        ((T, 1, 2), [(0, 1500)], 3000),
        ((1, 2), [(0, 1500)], 3000),
        ((), [(0, 1500)], 3000),
        # Ends that do not go on: no window is looked at twice.
        ((T, 1, T, T), [(0, 0)], 3000),
    ],
)
def test_where_windows_are_cut(tokens: tuple[int, ...], segments: list[tuple[int, int]], advance: int) -> None:
    found, frames = cut(tokens, T, 3000)
    assert [each[:2] for each in found] == segments
    assert frames == advance


def test_segments_have_their_own_tokens() -> None:
    found, _ = cut((T, 1, T + 50, T + 50, 2, 3, T + 90, T + 95, 4), T, 3000)
    assert [tokens for _, _, tokens in found] == [(T, 1, T + 50), (T + 50, 2, 3, T + 90)]


SEGMENTS = [
    Segment(0, 0.0, 2.5, " One.", (), 0.0, 0.0, 1.0, 0.0),
    Segment(0, 3661.004, 3725.0, " Two --> three.", (), 0.0, 0.0, 1.0, 0.0),
]


def test_subtitles() -> None:
    assert subrip(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:02,500\nOne.\n\n2\n01:01:01,004 --> 01:02:05,000\nTwo -> three.\n\n"
    )
    assert webvtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nOne.\n\n01:01:01.004 --> 01:02:05.000\nTwo -> three.\n\n"
    )
