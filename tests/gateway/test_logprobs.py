from test_detokenise import byte_level

from tokenworks.gateway.detokenise import Vocabulary
from tokenworks.gateway.logprobs import chat_logprobs, completion_logprobs
from tokenworks.protocol.messages import TokenLogprobs


def entries(ids: list[int]) -> list[TokenLogprobs]:
    return [TokenLogprobs(token_id, -1.0, 2, ((token_id + 1, -0.5),)) for token_id in ids]


def test_offsets_count_whole_characters_and_no_special_tokens_before_the_text() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("aé東z").ids
    bos = tokenizer.token_to_id("<|end|>")
    made = completion_logprobs(entries(ids), Vocabulary(tokenizer), False, offset=-len("<|end|>"), first_id=bos)
    assert made.text_offset == [0, 0, 1, 2, 2, 3, 3, 3]
    assert made.token_logprobs == [None] + [-1.0] * 7


def test_the_chosen_token_is_always_among_the_top() -> None:
    tokenizer = byte_level()
    [token_id] = tokenizer.encode("a").ids
    made = completion_logprobs(entries([token_id]), Vocabulary(tokenizer), False, offset=0)
    assert made.top_logprobs == [{"a": -1.0, "b": -0.5}]
    named = completion_logprobs(entries([token_id]), Vocabulary(tokenizer), True, offset=0)
    assert named.tokens == [f"token_id:{token_id}"]
    assert named.top_logprobs == [{f"token_id:{token_id}": -1.0, f"token_id:{token_id + 1}": -0.5}]


def test_part_of_a_character_has_its_bytes() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("é").ids
    content = chat_logprobs(entries(ids), Vocabulary(tokenizer), False).content
    assert [item.bytes for item in content] == [[0xC3], [0xA9]]
    assert [item.token for item in content] == ["\ufffd", "\ufffd"]


def test_of_tokens_that_look_alike_the_likeliest_is_shown() -> None:
    tokenizer = byte_level()
    first, second = tokenizer.encode("é").ids
    entry = TokenLogprobs(first, -0.25, 1, ((first, -0.25), (second, -3.0)))
    made = completion_logprobs([entry], Vocabulary(tokenizer), False, offset=0)
    assert made.top_logprobs == [{"\ufffd": made.token_logprobs[0]}] == [{"\ufffd": -0.25}]
