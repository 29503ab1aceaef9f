"""A draft model has to mean the same by a token id."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from tokenworks.models.text.vocabulary import check_same_vocabulary
from tokenworks.protocol.errors import ModelError


def folder(path: Path, words: list[str], added: tuple[str, ...] = ()) -> Path:
    path.mkdir()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.add_special_tokens(list(added))
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_the_same_up_to_the_shorter_one(tmp_path: Path) -> None:
    big = folder(tmp_path / "big", ["<unk>", "a", "b"], ("<end>", "<pad>"))
    small = folder(tmp_path / "small", ["<unk>", "a", "b"], ("<end>",))
    for one, other in ((big, big), (big, small), (small, big)):
        check_same_vocabulary(one, other)


def test_as_many_tokens_are_not_the_same_tokens(tmp_path: Path) -> None:
    big = folder(tmp_path / "big", ["<unk>", "a", "b"], ("<end>",))
    for number, words, added in ((2, ["<unk>", "a", "c"], "<end>"), (3, ["<unk>", "a", "b"], "<stop>")):
        other = folder(tmp_path / f"other{number}", words, (added,))
        with pytest.raises(ModelError, match=rf"other{number} cannot draft for .*big: .*token {number} is "):
            check_same_vocabulary(big, other)


def test_real_ones(smollm2: Path, gemma3: Path) -> None:
    check_same_vocabulary(smollm2, smollm2)
    with pytest.raises(ModelError, match="different vocabularies"):
        check_same_vocabulary(smollm2, gemma3)
