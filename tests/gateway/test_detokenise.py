import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tokenworks.gateway.detokenise import Detokeniser, Vocabulary

TEXT = "naïve café — 東京 🙂🇩🇪 \u0e2a\u0e27\u0e31 tabs\tand\nlines"


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "▁tabs", "a", "é", "caf"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte_level", "byte_fallback"])
def test_a_stream_of_bytes_is_the_text_and_never_half_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT.replace(" ", "▁") if tokenizer.decoder.__class__ is decoders.Sequence else TEXT).ids
    assert len(ids) > len(TEXT)
    detokeniser = Detokeniser(Vocabulary(tokenizer))
    pieces = [detokeniser.push([token_id]) for token_id in ids]
    assert "".join(pieces) + detokeniser.flush() == TEXT
    assert "\ufffd" not in "".join(pieces)


@given(st.lists(st.integers(0, 257), max_size=40), st.data())
def test_any_cut_of_any_bytes_gives_what_the_library_decodes_at_once(ids: list[int], data: st.DataObject) -> None:
    tokenizer = byte_level()
    detokeniser, shown, at = Detokeniser(Vocabulary(tokenizer)), "", 0
    while at < len(ids):
        size = data.draw(st.integers(1, 5))
        shown += detokeniser.push(ids[at : at + size])
        at += size
    assert shown + detokeniser.flush() == tokenizer.decode(ids, skip_special_tokens=True)


def test_special_tokens_leave_no_text_and_other_added_ones_do() -> None:
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer)
    end, call = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<tool_call>")
    assert Detokeniser(vocabulary).push([end, call, end]) == "<tool_call>"
    assert vocabulary.token_text(end) == "<|end|>"


def test_bytes_that_never_become_a_character_are_shown_as_such_at_the_end() -> None:
    tokenizer = byte_level()
    detokeniser = Detokeniser(Vocabulary(tokenizer))
    first = tokenizer.encode("東").ids[0]
    assert (detokeniser.push([first]), detokeniser.flush()) == ("", "\ufffd")


def test_a_decoder_whose_tokens_do_not_stand_alone_is_refused() -> None:
    tokenizer = byte_level()
    tokenizer.decoder = decoders.WordPiece()
    assert json.loads(tokenizer.decoder.__getstate__())["type"] == "WordPiece"
    with pytest.raises(ValueError, match="WordPiece"):
        Vocabulary(tokenizer)
