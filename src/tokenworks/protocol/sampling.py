"""How the next token is chosen: the options one request carries, in the field's own names."""

from typing import Literal

import msgspec


class Grammar(msgspec.Struct, frozen=True, tag_field="kind", tag="grammar"):
    """A constraint on the text, as data; the worker compiles it to token masks.

    `syntax` says how `text` reads: a JSON schema, a regular expression, a Lark grammar, or a JSON array of choices.
    """

    syntax: Literal["json_schema", "regex", "lark", "choice"]
    text: str


class SpeechRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model that writes down speech may write next (Whisper, arXiv 2212.04356): see engine/speech.py."""

    only: tuple[int, ...] = ()
    """Nothing but these tokens, unless empty."""
    never: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()
    end: int = 0
    """The first special token: all before it are text."""
    timestamps_from: int | None = None
    """The first of the tokens that are times, to the vocabulary's end; None: none is written."""
    latest_first: int = 50
    """The text begins within so many times of the first one."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling options of one output sequence, already validated and completed by the gateway.

    `seed` is always set (the gateway draws one when the client gives none), so that a request carried on by
    another worker goes on exactly as it would have. The token drawn at output position i depends on
    (seed, i) and the logits alone, never on what else is in the batch.
    """

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: not asked for; n: the chosen token's and the n likeliest tokens' (n may be 0)."""
    prompt_logprobs: int | None = None
    """The same for every prompt token but the first."""
    grammar: Grammar | None = None
    speech: SpeechRules | None = None
