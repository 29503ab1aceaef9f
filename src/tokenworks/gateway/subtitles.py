"""Segments as subtitles: SubRip, and WebVTT (W3C)."""

from collections.abc import Iterable

from tokenworks.gateway.transcribe import Segment


def subrip(segments: Iterable[Segment]) -> str:
    cues = (
        f"{number}\n{_time(segment.start_s, ',')} --> {_time(segment.end_s, ',')}\n{_line(segment)}\n\n"
        for number, segment in enumerate(segments, 1)
    )
    return "".join(cues)


def webvtt(segments: Iterable[Segment]) -> str:
    cues = (f"{_time(each.start_s, '.')} --> {_time(each.end_s, '.')}\n{_line(each)}\n\n" for each in segments)
    return "WEBVTT\n\n" + "".join(cues)


def _line(segment: Segment) -> str:
    # An arrow would be taken for a time's.
    return segment.text.strip().replace("-->", "->")


def _time(seconds: float, mark: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"
