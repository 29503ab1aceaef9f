"""Sampling options as clients write them (OpenAI's names and vLLM's extras), checked and turned into Sampling."""

import random
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from tokenworks.gateway.grammar import Choices, GrammarOptions, GrammarText, build_grammar
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.sampling import Grammar, Sampling

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=1024)]
Count = Annotated[int, Meta(ge=1, le=128)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]

Stop = StopString | Annotated[list[StopString], Meta(max_length=16)]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    """A last chunk without choices has the usage."""
    continuous_usage_stats: bool | None = None
    """vLLM's: every other chunk has the usage so far, too."""


class SamplingBody(msgspec.Struct, kw_only=True):
    """What chat and completions bodies share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    seed: Int64 | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    return_tokens_as_token_ids: bool | None = None
    structured_outputs: GrammarOptions | None = None
    guided_json: dict[str, Any] | GrammarText | None = None
    """The four guided_* are what vLLM called `structured_outputs` before; clients that still say so mean the same."""
    guided_regex: GrammarText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None
    response_format: dict[str, Any] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    user: str | None = None
    nvext: dict[str, Any] | None = None
    """Dynamo's hints; accepted, not used yet."""


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def token_bias(bias: dict[str, float] | None, vocabulary_tokens: int) -> dict[int, float]:
    """Keys are token ids, written as JSON must write them."""
    result: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocabulary_tokens):
            raise InvalidRequest(
                f"logit_bias has the key {key!r}; keys are token ids from 0 to {vocabulary_tokens - 1}",
                param="logit_bias",
            )
        result[int(key)] = value
    return result


def grammar_options(body: SamplingBody) -> GrammarOptions | None:
    """What `structured_outputs` asks for, by either of its names."""
    guided = GrammarOptions(body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)
    if guided == GrammarOptions():
        return body.structured_outputs
    if body.structured_outputs is not None:
        raise InvalidRequest("structured_outputs and guided_* exclude each other", param="structured_outputs")
    return guided


def draw_seed() -> int:
    """For clients that give none: a request must be repeatable on another worker."""
    return random.getrandbits(63)


def sampling_from(
    body: SamplingBody,
    *,
    max_tokens: int,
    vocabulary_tokens: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> Sampling:
    """One sequence's Sampling; `grammar` (forced tool calls) wins over the body's own formats."""
    if (body.min_tokens or 0) > max_tokens:
        raise InvalidRequest(f"min_tokens is {body.min_tokens}, more than the {max_tokens} allowed", param="min_tokens")
    if any(token_id >= vocabulary_tokens for token_id in body.stop_token_ids or ()):
        raise InvalidRequest(f"token ids end at {vocabulary_tokens - 1}", param="stop_token_ids")
    return Sampling(
        max_tokens=max_tokens,
        seed=draw_seed() if body.seed is None else body.seed % 2**63,
        min_tokens=body.min_tokens or 0,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(0, body.top_k or 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=token_bias(body.logit_bias, vocabulary_tokens),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar or build_grammar(body.response_format, grammar_options(body)),
    )


def sibling_sampling(sampling: Sampling, place: int) -> Sampling:
    """The place-th of n: the same options, a seed of its own that follows from the first's."""
    if place == 0:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + place * 0x9E3779B97F4A7C15) % 2**63)


FinishReason = Literal["stop", "length", "tool_calls"]
