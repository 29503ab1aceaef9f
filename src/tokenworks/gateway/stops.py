"""Stop strings in a stream of text: found across any cut, and never leaked in part."""


class StopStrings:
    """Text in, text that may be shown out.

    Text that could still turn into a stop string is held back until it does or cannot.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str, *, armed: bool = True) -> str:
        """What may be shown now; sets `matched` when a stop string is complete (the earliest in the text wins).

        Unarmed (a minimum length is not reached yet), text passes and cannot begin a stop string.
        """
        if not self._stops:
            return text
        if not armed:
            shown, self._held = self._held + text, ""
            return shown
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.matched = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return text[:at]
        keep_from = self._first_possible_start(text)
        self._held = text[keep_from:]
        return text[:keep_from]

    def _first_possible_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            tail = text[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return len(text)

    def flush(self) -> str:
        """At the end: what was held back after all."""
        held, self._held = self._held, ""
        return held
