"""Renders a model's chat template: messages and tools to the prompt text that the model was trained on.

Templates are Jinja programs that come with model files, so they are not trusted.
Covered: no access to Python's internals or to anything but what is passed in, nothing passed in is changed, a bound on
loop rounds and calls, on repeated text and on the result's length.
Not covered: a template that spends its allowed steps on expensive filters; the process's own limits must hold there.

What templates expect around them (block trimming, tojson, raise_exception, strftime_now, loop controls, generation
blocks) is as in the transformers library, documented under "chat templates".
"""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import InvalidRequest, ModelError

MAX_STEPS = 1_000_000
MAX_CHARACTERS = 16 << 20


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    /,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    **values: Any,
) -> str:
    """The prompt text. `values` are further variables of the template (bos_token, enable_thinking, ...).

    Raises InvalidRequest when the template refuses or cannot take these messages, ModelError when the template itself
    is broken or goes beyond its bounds.
    """
    if "messages" in values:
        raise InvalidRequest("a template variable cannot be called 'messages'", param="chat_template_kwargs")
    compiled = _compile(template)
    outer = _steps_left.set([MAX_STEPS])
    try:
        chunks = compiled.generate(
            messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **values
        )
        return "".join(_bounded(chunks))
    except _RefusedError as refusal:
        raise InvalidRequest(f"the model's chat template: {refusal}", param="messages") from refusal
    except SecurityError as error:
        raise ModelError(f"the model's chat template was stopped: {error}") from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise InvalidRequest(f"the model's chat template cannot render this: {error}", param="messages") from error
    except RecursionError as error:
        raise ModelError("the model's chat template was stopped: it calls itself too deeply") from error
    finally:
        _steps_left.reset(outer)


class _RefusedError(Exception):
    """What a template's raise_exception says."""


_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


def _step() -> None:
    left = _steps_left.get()
    left[0] -= 1
    if left[0] < 0:
        raise SecurityError(f"it takes more than {MAX_STEPS} steps")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


def _bounded(chunks: Iterable[str]) -> Iterator[str]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > MAX_CHARACTERS:
            raise SecurityError(f"it writes more than {MAX_CHARACTERS} characters")
        yield chunk


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with calls counted and products bounded."""

    intercepted_binops = frozenset({"*", "**"})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as the base has it)
        _step()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("it uses the power operator")
        for text, times in ((left, right), (right, left)):
            if isinstance(text, Sequence) and isinstance(times, int) and len(text) * times > MAX_CHARACTERS:
                raise SecurityError("it repeats a value too often")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """{% generation %} marks the assistant's own words for training; it changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012 (as the base has it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.filters["counted"] = _counted
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    try:
        tree = environment.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(environment)
        code = environment.compile(tree)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ModelError(f"the model's chat template is broken: {error}") from error
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, without HTML escapes: the text is for a model."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.fromtimestamp(wall_time_s()).strftime(pattern)
