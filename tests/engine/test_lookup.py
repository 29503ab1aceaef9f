"""Guesses from a sequence's own tokens."""

import random

from tokenworks.engine.lookup import PromptLookup


def guessed(tokens: list[int], count: int) -> list[int]:
    return PromptLookup(tokens).guess(count)


def test_what_followed_the_last_two_tokens_is_the_guess() -> None:
    assert guessed([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]
    assert PromptLookup([1, 2, 3, 4]).chances(5) == []
    for short in ([1], [1, 1]):
        assert PromptLookup(short).chances(5) == []


def test_the_latest_occurrence_wins() -> None:
    assert guessed([1, 2, 3, 9, 1, 2, 4, 9, 9, 1, 2], 1) == [4]


def test_a_longer_match_beats_a_later_one() -> None:
    tokens = [5, 6, 1, 2, 3, 7, 1, 2, 4, 5, 6]
    lookup = PromptLookup(tokens)
    for token in (1, 2):  # it follows 5 6 to its first place, and stays there: 5 6 1 2 matches more than 7 1 2
        tokens.append(token)
        lookup.follow()
    assert lookup.guess(1) == [3]


def test_a_loop_is_guessed_beyond_the_end() -> None:
    assert guessed([9, 1, 2, 3, 1, 2], 8) == [3, 1, 2, 3, 1, 2, 3, 1]
    assert guessed([7, 7, 7], 4) == [7, 7, 7, 7]


def test_a_longer_match_is_surer_and_experience_outweighs_what_was_assumed() -> None:
    tokens = [*range(30), *range(15)]
    lookup = PromptLookup(tokens)
    chances = lookup.chances(30)
    assert chances == sorted(chances)
    assert 0 < chances[0] < chances[-1] < 1
    liar = [1, 2, 3]
    lied = PromptLookup(liar)
    before = PromptLookup([1, 2, 3, 1, 2]).chances(1)[0]
    for i in range(20):  # 1 2 is always followed by something new
        liar += [1, 2, 100 + i]
        lied.follow()
    liar += [1, 2]
    lied.follow()
    assert lied.chances(1)[0] < before / 2


def test_every_guess_has_its_reason_whenever_tokens_come() -> None:
    for seed in range(60):
        draw = random.Random(seed)
        tokens = [draw.randrange(draw.choice([2, 4, 12])) for _ in range(draw.randrange(1, 40))]
        lookup, together = PromptLookup(tokens), random.Random(seed + 1)
        for _ in range(60):
            for _ in range(together.choice([1, 1, 1, 4])):
                tokens.append(tokens[-draw.randrange(1, min(len(tokens), 6) + 1)] if draw.random() < 0.8 else 13)
            lookup.follow()
            seen = {(tokens[i - 2], tokens[i - 1]) for i in range(2, len(tokens))}
            chances = lookup.chances(3)
            if (tokens[-2], tokens[-1]) not in seen:
                assert chances == []
                continue
            assert len(chances) == 3
            [guess] = lookup.guess(1)
            assert (tokens[-2], tokens[-1], guess) in set(zip(tokens, tokens[1:], tokens[2:], strict=False))
