"""Log-probabilities in the two shapes that OpenAI's clients read."""

from collections.abc import Iterable, Sequence

import msgspec

from tokenworks.gateway.chat_types import ChoiceLogprobs, TokenLogprob, TopLogprob
from tokenworks.gateway.detokenise import Vocabulary
from tokenworks.protocol.messages import TokenLogprobs


class CompletionLogprobs(msgspec.Struct):
    """The shape of /v1/completions: parallel lists, None where nothing precedes the token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


def _name(vocabulary: Vocabulary, token_id: int, as_ids: bool) -> str:
    return f"token_id:{token_id}" if as_ids else vocabulary.token_text(token_id)


def chat_logprobs(entries: Sequence[TokenLogprobs], vocabulary: Vocabulary, as_ids: bool) -> ChoiceLogprobs:
    """The shape of chat; with `as_ids` tokens are called `token_id:N` (vLLM's return_tokens_as_token_ids)."""

    def item(token_id: int) -> tuple[str, list[int]]:
        return _name(vocabulary, token_id, as_ids), list(vocabulary.token_bytes(token_id))

    content = []
    for entry in entries:
        name, data = item(entry.token_id)
        top = []
        for token_id, logprob in entry.top:
            top_name, top_data = item(token_id)
            top.append(TopLogprob(top_name, logprob, top_data))
        content.append(TokenLogprob(name, entry.logprob, data, top))
    return ChoiceLogprobs(content)


def characters(vocabulary: Vocabulary, token_ids: Iterable[int]) -> int:
    """Characters of text that these tokens begin: one cut across tokens belongs to the first."""
    return sum(byte & 0xC0 != 0x80 for token_id in token_ids for byte in vocabulary.token_bytes(token_id))


def completion_logprobs(
    entries: Sequence[TokenLogprobs], vocabulary: Vocabulary, as_ids: bool, *, offset: int, first_id: int | None = None
) -> CompletionLogprobs:
    """`offset` is where in the text the tokens begin, in characters; negative by the length of special tokens that
    stand before the text without being part of it. `first_id` is an echoed prompt's first token: nothing precedes it.
    """
    result = CompletionLogprobs([], [], [], [])

    def add(token_id: int, logprob: float | None, top: dict[str, float] | None) -> None:
        nonlocal offset
        result.tokens.append(_name(vocabulary, token_id, as_ids))
        result.text_offset.append(max(0, offset))
        result.token_logprobs.append(logprob)
        result.top_logprobs.append(top)
        offset += characters(vocabulary, (token_id,))

    if first_id is not None:
        add(first_id, None, None)
    for entry in entries:
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            # Parts of characters share a name. The likeliest keeps it: harnesses compare the greatest with the token's.
            top.setdefault(_name(vocabulary, token_id, as_ids), logprob)
        add(entry.token_id, entry.logprob, top)
    return result
