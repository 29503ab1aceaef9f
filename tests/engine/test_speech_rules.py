"""What Whisper may write next: times in pairs, never falling, and no token that is not speech."""

import numpy as np
import pytest

from tokenworks.engine.speech import SpeechMask
from tokenworks.protocol.sampling import SpeechRules

# Of a vocabulary of 40: 0 to 19 are text, 20 ends it, 21 to 24 are special, 25 is 0 s.
RULES = SpeechRules(never=(3, 21, 22, 23, 24), not_first=(5, 20), end=20, timestamps_from=25, latest_first=4)


def allowed(*output: int, rules: SpeechRules = RULES, logits: dict[int, float] | None = None) -> set[int]:
    mask = SpeechMask(rules)
    for token in output:
        mask.take(token)
    row = np.zeros(40, np.float32)
    row[25:] = -10.0  # times are unlikely, unless they say otherwise
    for token, value in (logits or {}).items():
        row[token] = value
    mask.apply(row)
    return set(np.nonzero(row > -np.inf)[0].tolist())


TEXT = set(range(20)) - {3}
TIMES = set(range(25, 40))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ((), set(range(25, 30))),  # the first time, not too late
        ((27,), TEXT | {20}),  # text behind it
        ((27, 4), TEXT | {20} | {time for time in TIMES if time > 27}),
        ((27, 4, 30), {20} | {time for time in TIMES if time >= 30}),  # an end: the next beginning, or the end of all
        ((27, 4, 30, 30), TEXT | {20}),  # a pair is complete
        ((27, 4, 30, 30, 6), TEXT | {20} | {time for time in TIMES if time > 30}),
    ],
)
def test_times_come_in_pairs_and_never_fall(output: tuple[int, ...], expected: set[int]) -> None:
    assert allowed(*output) == expected


def test_a_time_is_taken_when_all_together_are_likelier_than_any_text() -> None:
    equally = dict.fromkeys(TIMES, -2.0)  # 15 times e^-2 is more than 1
    assert allowed(27, 4, logits=equally) == {time for time in TIMES if time > 27}
    assert allowed(27, 4, logits={**equally, 7: 1.0}) >= TEXT


def test_without_times_only_the_lists_count() -> None:
    rules = SpeechRules(never=(3,), not_first=(5, 20), end=20)
    assert allowed(rules=rules) == set(range(40)) - {3, 5, 20}
    assert allowed(7, rules=rules) == set(range(40)) - {3}


def test_nothing_but_the_named_tokens() -> None:
    assert allowed(rules=SpeechRules(only=(22, 24))) == {22, 24}
