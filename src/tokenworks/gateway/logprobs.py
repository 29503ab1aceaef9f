"""Log-probabilities in the two shapes that OpenAI's clients read."""

from collections.abc import Sequence

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


def completion_logprobs(
    entries: Sequence[TokenLogprobs],
    vocabulary: Vocabulary,
    as_ids: bool,
    *,
    offset: int = 0,
    first_id: int | None = None,
) -> CompletionLogprobs:
    """`first_id` is the first token of an echoed prompt, which nothing precedes; `offset` counts characters."""
    result = CompletionLogprobs([], [], [], [])
    if first_id is not None:
        result.tokens.append(_name(vocabulary, first_id, as_ids))
        result.text_offset.append(offset)
        result.token_logprobs.append(None)
        result.top_logprobs.append(None)
        offset += len(vocabulary.token_text(first_id))
    for entry in entries:
        name = _name(vocabulary, entry.token_id, as_ids)
        top = {_name(vocabulary, token_id, as_ids): logprob for token_id, logprob in entry.top}
        top.setdefault(name, entry.logprob)
        result.tokens.append(name)
        result.text_offset.append(offset)
        result.token_logprobs.append(entry.logprob)
        result.top_logprobs.append(top)
        offset += len(vocabulary.token_text(entry.token_id))
    return result
