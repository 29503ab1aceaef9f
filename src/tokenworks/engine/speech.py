"""What Whisper may write next (arXiv 2212.04356, 4.5): times in pairs around each piece of speech, never falling."""

import numpy as np

from tokenworks.kernels.backend import Float32
from tokenworks.protocol.sampling import SpeechRules


class SpeechMask:
    """One sequence's rules; it is told every output token."""

    def __init__(self, rules: SpeechRules) -> None:
        self._rules = rules
        self._never = np.array(rules.never, np.int64)
        self._not_first = np.array(rules.not_first, np.int64)
        self._tokens = 0
        self._last_two = (True, True)
        """Whether the last token but one, and the last one, were times; what is not there counts as one."""
        self._latest = -1
        """The last time so far."""

    def take(self, token: int) -> None:
        """The next output token."""
        first = self._rules.timestamps_from
        is_time = first is not None and token >= first
        self._last_two = (self._last_two[1], is_time)
        self._tokens += 1
        if is_time:
            self._latest = token

    def apply(self, row: Float32) -> None:
        """Takes what may not come out of a row [vocabulary] of logits, in place."""
        rules = self._rules
        if rules.only:
            kept = row[list(rules.only)]
            row[:] = -np.inf
            row[list(rules.only)] = kept
            return
        row[self._never] = -np.inf
        if not self._tokens:
            row[self._not_first] = -np.inf
        if rules.timestamps_from is not None:
            self._apply_times(row, rules.timestamps_from, rules.end)

    def _apply_times(self, row: Float32, first: int, end: int) -> None:
        if not self._tokens:
            row[:first] = -np.inf
            row[first + self._rules.latest_first + 1 :] = -np.inf
            return
        before, last = self._last_two
        if last and before:
            row[first:] = -np.inf  # a pair is complete, or the first one is there: text follows
        elif last:
            row[:end] = -np.inf  # an end: the next beginning follows, or the end of all
        if self._latest >= 0:  # the next piece may begin where the last one ended, but it takes some time
            row[first : self._latest + (not last or before)] = -np.inf
        times = row[first:]
        highest = times.max()
        if highest > -np.inf:
            # Whichever time it is: if a time is likelier than any one text, then it is one.
            some_time = highest + np.log(np.exp(times - highest).sum())
            if some_time > row[:first].max():
                row[:first] = -np.inf
