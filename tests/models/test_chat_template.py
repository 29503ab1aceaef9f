"""Chat templates: the same text as transformers renders, and a sandbox that holds."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tokenworks.models.text.chat_template import render
from tokenworks.protocol.errors import InvalidRequest, ModelError

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The things that templates in the wild do: namespaces, tools as JSON, loop controls, loop variables, macros, trimming.
BUSY = """
{%- set ns = namespace(last=-1) %}
{%- macro wrap(text) %}<<{{ text | trim }}>>{% endmacro %}
{%- if tools %}
    {{- "TOOLS\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson }}{{ "\\n" }}
    {%- endfor %}
    {{- tools | tojson(indent=2) }}
{%- endif %}
{% for message in messages %}
    {% if message.role == "skip" %}{% continue %}{% endif %}
    {% if loop.index > 5 %}{% break %}{% endif %}
    {% set ns.last = loop.index0 %}
    {% if message.role == "assistant" %}
        {% generation %}
{{ wrap(message.content) }}{{ loop.revindex }}/{{ loop.length }} {{ loop.previtem.role if loop.previtem }}
        {% endgeneration %}
    {% else %}
{{ bos_token }}{{ message["role"] }}: {{ message.content.strip().upper()[::-1] }}{{ "" if loop.last else ";" }}
    {% endif %}
{% endfor %}
{{- ns.last * 2 }}{{ "=" * 3 }}{{ undefined_thing is defined }}
{%- if add_generation_prompt %}{{ "assistant:" }}{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "skip", "content": "-"},
    {"role": "user", "content": "a < b & 'c' é 🤖"},
    {"role": "assistant", "content": "\n yes "},
    {"role": "user", "content": "bye"},
]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"a": [1, None, True, "<x>"]}}}]


@pytest.mark.parametrize("template", [SMOLLM2, BUSY])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_text_is_transformers_own(template: str, tools: list[dict[str, object]] | None, prompt: bool) -> None:
    ours = render(template, MESSAGES, tools=tools, add_generation_prompt=prompt, bos_token="<s>")
    ((theirs,), _) = render_jinja_template(
        [MESSAGES], tools=tools, chat_template=template, add_generation_prompt=prompt, bos_token="<s>"
    )
    assert ours == theirs
    assert "bye" in ours or "EYB" in ours


def test_a_refusal_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", [])


def test_messages_of_the_wrong_shape_are_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="cannot render"):
        render(SMOLLM2, [{"role": "user", "content": None}])
    with pytest.raises(InvalidRequest, match="messages"):
        render("x", [], **{"messages": []})


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for %}", "broken"),
        ("{{ messages.__class__.__mro__ }}", "stopped"),
        ("{{ ''.__class__.__base__ }}", "stopped"),
        ("{{ messages.append(1) }}", "stopped"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in range(9999) for b in range(9999) %}{% endfor %}", "broken"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(64) }}", "steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "deeply"),
        ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "characters"),
        ("{{ 'x' * 10000000000 }}", "repeats"),
        ("{{ 10000000000 * 'x' }}", "repeats"),
        ("{{ 9 ** 9 ** 9 }}", "power"),
    ],
)
def test_a_hostile_or_broken_template_is_stopped(template: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        render(template, MESSAGES)


def test_a_stopped_template_leaves_the_next_its_full_allowance() -> None:
    with pytest.raises(ModelError):
        render("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", [])
    assert render("{% for a in range(99999) %}{{ loop.index if loop.last }}{% endfor %}", []) == "99999"
