"""A grammar as the llguidance library takes it, opened within bounds: the gateway asks whether one can be used before
it takes a request, the worker opens it for good.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.sampling import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LEXER_FUEL = 250_000
"""A quarter of the library's own bound: a pattern that is too much is refused in 0.2 s, not after a second or two."""
_REASON_CHARACTERS = 500


def open_grammar(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    """The grammar at its beginning. Raises InvalidRequest for one that does not read, fits no text, or is too much.

    The first mask is computed here: many a grammar proves to be too much, or to fit nothing, only then.
    """
    from llguidance import LLMatcher, LLParserLimits  # on first use: start-up time is a feature

    limits = LLParserLimits(initial_lexer_fuel=_LEXER_FUEL)
    matcher = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise _refused(grammar, reason(matcher))
    return matcher


def reason(matcher: LLMatcher) -> str:
    """What is wrong with a matcher in error, without the dump of the parser's state that may follow."""
    said = str(matcher.get_error()).partition("\n<state>")[0].strip()[:_REASON_CHARACTERS]
    return "no text satisfies it" if said == "NoExtensionBias" else said


def _refused(grammar: Grammar, why: str) -> InvalidRequest:
    return InvalidRequest(f"the {grammar.syntax} cannot be used: {why}")


def _source(grammar: Grammar) -> str:
    """The library's own notation."""
    from llguidance import LLMatcher

    try:
        match grammar.syntax:
            case "json_schema":
                return LLMatcher.grammar_from_json_schema(grammar.text)
            case "regex":
                return LLMatcher.grammar_from_regex(grammar.text)
            case "lark":
                return LLMatcher.grammar_from_lark(grammar.text)
            case "choice":
                choices = json.loads(grammar.text)
                strings = isinstance(choices, list) and all(isinstance(choice, str) and choice for choice in choices)
                if not choices or not strings:
                    raise ValueError("expected a JSON array of strings, at least one, none empty")
                return LLMatcher.grammar_from_regex("|".join(re.escape(choice) for choice in choices))
    except (ValueError, RecursionError) as error:
        raise _refused(grammar, str(error)[:_REASON_CHARACTERS]) from error
