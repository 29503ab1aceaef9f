"""Structured output as clients ask for it, checked and turned into one Grammar for the engine."""

import re
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from tokenworks.gateway.schema import readable
from tokenworks.protocol.errors import InvalidRequest
from tokenworks.protocol.sampling import Grammar

GRAMMAR_BYTES_MAX = 65_536
"""Longer schemas, patterns and grammars are refused: compiling them would hold up a worker."""

GrammarText = Annotated[str, Meta(min_length=1, max_length=GRAMMAR_BYTES_MAX)]
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1024)]


class GrammarOptions(msgspec.Struct):
    """vLLM's `structured_outputs`: exactly one of these."""

    json: dict[str, Any] | GrammarText | None = None
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    """Lark, or GBNF as llama.cpp writes it."""
    json_object: bool | None = None


def json_schema_grammar(schema: object, param: str) -> Grammar:
    """The schema as compact JSON on one line: small models love to wander off in optional whitespace."""
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("a JSON schema is an object", param=param)
    if isinstance(schema, dict):
        schema = {"x-guidance": {"whitespace_flexible": False}, **readable(schema, param)}
    return check_grammar(Grammar("json_schema", msgspec.json.encode(schema).decode()), param)


def build_grammar(response_format: dict[str, Any] | None, options: GrammarOptions | None) -> Grammar | None:
    """The Grammar of `response_format` or of `structured_outputs`; InvalidRequest when neither reads."""
    formatted = _from_response_format(response_format) if response_format is not None else None
    if options is None:
        return formatted
    if formatted is not None:
        raise InvalidRequest("response_format and structured_outputs exclude each other", param="structured_outputs")
    return _from_options(options)


def _from_response_format(response_format: dict[str, Any]) -> Grammar | None:
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return json_schema_grammar({"type": "object"}, "response_format")
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return json_schema_grammar(schema, "response_format.json_schema.schema")
        case {"type": "json_schema"}:
            raise InvalidRequest(
                "a json_schema format needs json_schema: {name, schema}", param="response_format.json_schema"
            )
    raise InvalidRequest("type must be text, json_object or json_schema", param="response_format.type")


def _from_options(options: GrammarOptions) -> Grammar | None:
    where = "structured_outputs"
    given = [name for name in options.__struct_fields__ if getattr(options, name) not in (None, False)]
    if not given:
        return None
    if len(given) > 1:
        raise InvalidRequest(f"give one of json, regex, choice, grammar, json_object; not {given}", param=where)
    if options.json_object:
        return json_schema_grammar({"type": "object"}, f"{where}.json_object")
    if options.json is not None:
        schema: object = options.json
        if isinstance(schema, str):
            try:
                schema = msgspec.json.decode(schema)
            except (msgspec.DecodeError, RecursionError) as error:
                raise InvalidRequest(f"the schema is not valid JSON: {error}", param=f"{where}.json") from None
        return json_schema_grammar(schema, f"{where}.json")
    if options.regex is not None:
        return check_grammar(Grammar("regex", _ascii_classes(options.regex, f"{where}.regex")), f"{where}.regex")
    if options.choice is not None:
        return check_grammar(Grammar("choice", msgspec.json.encode(options.choice).decode()), f"{where}.choice")
    assert options.grammar is not None
    return check_grammar(Grammar("lark", _as_lark(options.grammar, f"{where}.grammar")), f"{where}.grammar")


def _as_lark(text: str, param: str) -> str:
    """Lark as it is, GBNF (the one with ::=) translated."""
    if re.search(r"^\s*[\w-]+\s*::=", text, re.MULTILINE) is None:
        return text
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except Exception as error:  # the converter raises whatever its parser trips over
        raise InvalidRequest(f"the grammar does not read: {error}", param=param) from None


_ASCII_CLASSES = {"d": "[0-9]", "w": "[0-9A-Za-z_]"}


def _ascii_classes(pattern: str, param: str) -> str:
    """The pattern with \\d and \\w as ASCII, which clients mean: the library's take every digit of Unicode."""

    def replacement(escape: re.Match[str]) -> str:
        if not escape[1]:  # the library would read it as nothing
            raise InvalidRequest("the regex ends in a backslash that escapes nothing", param=param)
        return _ASCII_CLASSES.get(escape[1], escape[0])

    return re.sub(r"\\(.?)", replacement, pattern, flags=re.DOTALL)


def check_grammar(grammar: Grammar, param: str) -> Grammar:
    """The grammar again, when it can be used; else InvalidRequest with the reason."""
    if len(grammar.text) > GRAMMAR_BYTES_MAX:
        raise InvalidRequest(f"larger than {GRAMMAR_BYTES_MAX} bytes", param=param)
    problem = _problem(grammar)
    if problem:
        raise InvalidRequest(problem, param=param)
    return grammar


@lru_cache(maxsize=64)
def _problem(grammar: Grammar) -> str:
    """Why the grammar cannot be used; "" when it can. Remembered: clients send the same few again and again."""
    from llguidance import LLTokenizer

    from tokenworks.engine.grammar import open_grammar

    try:
        open_grammar(grammar, LLTokenizer("byte"))
    except InvalidRequest as error:
        return error.message
    return ""
