"""Prompts are distinct, from real text, and differ between runs."""

import pytest

from tokenworks.bench.prompts import Prompts, manual_texts


def test_no_prompt_is_another_ones_prefix() -> None:
    prompts = Prompts(list(range(50_000)), seed=1)
    taken = prompts.take(300, 128) + prompts.take(8, 512)
    assert len({prompt[0] for prompt in taken}) == 308
    assert [len(prompt) for prompt in taken] == [128] * 300 + [512] * 8


def test_runs_begin_at_places_of_their_own() -> None:
    tokens = list(range(50_000))
    assert Prompts(tokens, seed=1).take(3, 16) == Prompts(tokens, seed=1).take(3, 16)
    assert Prompts(tokens, seed=1).take(3, 16) != Prompts(tokens, seed=2).take(3, 16)


def test_says_when_the_text_runs_out() -> None:
    with pytest.raises(ValueError, match="too short"):
        Prompts(list(range(1000)), seed=1).take(100, 128)


def test_the_manual_is_long_enough_for_a_whole_run() -> None:
    assert sum(map(len, manual_texts())) > 400_000
