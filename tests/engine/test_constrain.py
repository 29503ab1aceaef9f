"""Grammars, on a model that would otherwise say anything: its words are bytes."""

import json
import re
import subprocess
import sys
from functools import cache

import pytest
from drafting import Eager, small_draft, use
from small_model import Reply, ask, limits, make_engine, run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tokenworks.engine import constrain
from tokenworks.engine.engine import Engine
from tokenworks.kernels.cpu.backend import CpuBackend
from tokenworks.kernels.reference import ReferenceBackend
from tokenworks.protocol.errors import EngineError
from tokenworks.protocol.messages import Finish, Generate
from tokenworks.protocol.sampling import Grammar

VOCABULARY, EOS = 264, 256  # the model's vocabulary is padded, as real ones are
PROMPT = [72, 101, 108, 108, 111]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@cache
def tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    assert made.token_to_id("<end>") == EOS
    return made


def engine(*, speculate: bool = True, **sizes: int) -> Engine:
    return make_engine(
        ReferenceBackend(), limits(**sizes), context_tokens=230, vocabulary=VOCABULARY, eos=EOS,
        tokenizer_json=tokenizer().to_str, speculate=speculate,
    )  # fmt: skip


def constrained(name: str, syntax: str, text: object, **how: object) -> Generate:
    grammar = Grammar(syntax, text if isinstance(text, str) else json.dumps(text))  # type: ignore[arg-type]
    return ask(name, PROMPT, **{"grammar": grammar, "temperature": 1.0, "max_tokens": 200, **how})


def text_of(reply: Reply) -> str:
    return tokenizer().decode(reply.tokens)


def test_a_schema_gives_json_that_fits_it() -> None:
    replies = run(engine(blocks=400), *(constrained(f"{seed}", "json_schema", PERSON, seed=seed) for seed in range(8)))
    assert {reply.finish for reply in replies.values()} == {Finish.STOP}
    people = [json.loads(text_of(reply)) for reply in replies.values()]
    for person in people:
        assert set(person) == {"name", "age", "tags"}
        assert len(person["name"]) <= 6
        assert type(person["age"]) is int
        assert 0 <= person["age"] <= 150
        assert 1 <= len(person["tags"]) <= 3
        assert set(person["tags"]) <= {"a", "b"}
    assert len({json.dumps(person) for person in people}) > 5, "the grammar leaves the choice to the model"


@pytest.mark.parametrize(
    ("syntax", "text", "pattern"),
    [
        ("regex", r"[0-9]{4}-[0-9]{2}", r"[0-9]{4}-[0-9]{2}"),
        ("choice", ["yes", "no", "a+b (maybe)"], r"yes|no|a\+b \(maybe\)"),
        ("choice", ['say "é"\n\t#-~&\\d'], r'say "é"\n\t#-~&\\d'),
        ("lark", 'start: "x" NUMBER ("," NUMBER)*\nNUMBER: /[1-9]{1,2}/', r"x[1-9]{1,2}(,[1-9]{1,2})*"),
        ("regex", "[ab]+", "[ab]+"),  # can end anywhere: the model must be free to say so
    ],
)
def test_other_grammars(syntax: str, text: object, pattern: str) -> None:
    asked = [constrained(f"{seed}", syntax, text, seed=seed, logit_bias={EOS: 1.0}) for seed in range(5)]
    for reply in run(engine(), *asked).values():
        assert reply.finish is Finish.STOP
        assert re.fullmatch(pattern, text_of(reply))


def test_a_grammar_that_is_complete_ends_the_request_whatever_min_tokens_says() -> None:
    reply = run(engine(), constrained("a", "choice", ["ok"], min_tokens=50, ignore_eos=True))["a"]
    assert (text_of(reply), reply.finish) == ("ok", Finish.STOP)
    assert reply.chunks[-1].stop_token_id is None


def test_max_tokens_cuts_a_grammar_short() -> None:
    reply = run(engine(), constrained("a", "choice", ["abcdef"], max_tokens=3))["a"]
    assert (text_of(reply), reply.finish) == ("abc", Finish.LENGTH)


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        ("json_schema", "{"),
        ("json_schema", '{"type": "no such type"}'),
        ("regex", "(unclosed"),
        ("lark", "start: missing_rule"),
        ("choice", "[]"),
        ("choice", '["a", 3]'),
        ("choice", "not json"),
        ("choice", "7"),
        ("regex", "a" * (constrain.GRAMMAR_CHARACTERS + 1)),
    ],
)
def test_a_bad_grammar_fails_its_request_and_says_why(syntax: str, text: str) -> None:
    replies = run(engine(), constrained("bad", syntax, text), constrained("good", "choice", ["fine"]))
    assert (replies["bad"].tokens, replies["bad"].finish) == ([], Finish.FAILED)
    assert ("cannot be used" in str(replies["bad"].error)) or ("characters" in str(replies["bad"].error))
    assert (text_of(replies["good"]), replies["good"].finish) == ("fine", Finish.STOP)


def test_others_go_on_while_a_grammar_is_compiled() -> None:
    running = engine()
    running.add(ask("plain", PROMPT, max_tokens=100, ignore_eos=True), 0.0)
    assert running.step(0.0).chunks
    running.add(constrained("bound", "json_schema", PERSON), 0.0)
    assert [chunk.request_id for chunk in running.step(0.0).chunks] in (["plain"], ["plain", "bound"])
    running.cancel("plain")
    assert run(running)["bound"].finish is Finish.STOP


def test_alone_as_among_others_after_preemption_and_carried_on() -> None:
    asked = [constrained(f"{seed}", "json_schema", PERSON, seed=seed, repetition_penalty=1.2) for seed in range(6)]
    alone = {one.request_id: run(engine(), one)[one.request_id] for one in asked}
    pressed = engine(blocks=58)
    together = run(pressed, *asked)
    assert pressed.step(0.0).stats.preemptions_total > 0
    for name, reply in alone.items():
        assert together[name].tokens == reply.tokens
    whole = alone["3"]
    for done in range(1, len(whole.tokens), 7):
        sent = tuple(whole.tokens[:done])
        rest = run(engine(), Generate("3", tuple(PROMPT), asked[3].sampling, sent))["3"]
        assert [*sent, *rest.tokens] == whole.tokens
        assert rest.finish is Finish.STOP


@pytest.mark.parametrize("who", ["text", "draft model"])
def test_the_same_with_guesses_and_without(who: str) -> None:
    rows = {"type": "array", "items": PERSON, "minItems": 3, "maxItems": 3}
    asked = [
        constrained(f"{syntax}{temperature}", syntax, text, temperature=temperature, seed=4)
        for syntax, text in (("json_schema", rows), ("regex", r"([a-f][0-9],){30}"), ("choice", ["ab" * 30, "ba" * 30]))
        for temperature in (0.0, 1.0)
    ]
    plain = run(engine(speculate=False, blocks=400), *asked)
    guessing = engine(blocks=400)
    if who == "draft model":
        use(guessing, Eager(small_draft(CpuBackend(), VOCABULARY, sizes=limits(blocks=400)), 1))
    run(guessing, *asked)  # compiles the grammars: when each is ready decides who runs with whom, and so who guesses
    for name, reply in run(guessing, *asked).items():
        assert (reply.tokens, reply.finish) == (plain[name].tokens, plain[name].finish)
        assert reply.finish is Finish.STOP or name.startswith("json")
    stats = guessing.step(0.0).stats
    assert stats.draft_tokens_accepted_total > 10
    assert stats.draft_tokens_total > stats.draft_tokens_accepted_total


def test_carried_on_when_the_grammar_is_complete_or_broken() -> None:
    sampling = constrained("a", "choice", ["ab"]).sampling
    a, b = tokenizer().encode("ab").ids
    complete = run(engine(), Generate("a", tuple(PROMPT), sampling, (a, b)))["a"]
    assert (complete.tokens, complete.finish) == ([], Finish.STOP)
    broken = run(engine(), Generate("a", tuple(PROMPT), sampling, (b,)))["a"]
    assert broken.finish is Finish.FAILED
    assert "the grammar cannot go on" in str(broken.error)


def test_a_grammar_that_outgrows_the_library_fails_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library then allows the end and nothing else, which would look like a STOP."""
    compiler = constrain.GrammarCompiler(tokenizer().to_str, frozenset({EOS}), VOCABULARY)
    matcher = compiler.compile(Grammar("choice", '["ab"]')).result()
    with pytest.raises(EngineError, match="cannot go on"):
        matcher.take(EOS)
    with pytest.raises(EngineError, match="cannot go on"):
        matcher.allowed()
    monkeypatch.setattr(constrain.GrammarCompiler, "_compile", lambda self, grammar: matcher)
    replies = run(engine(), constrained("a", "choice", ["ab"]), ask("b", PROMPT, max_tokens=2, ignore_eos=True))
    assert (replies["a"].tokens, replies["a"].finish) == ([], Finish.FAILED)
    assert "cannot go on" in str(replies["a"].error)
    assert len(replies["b"].tokens) == 2


def test_a_request_can_be_cancelled_before_its_grammar_is_ready() -> None:
    waiting = engine()
    waiting.add(constrained("a", "json_schema", PERSON), 0.0)
    waiting.cancel("a")
    [chunk] = waiting.step(0.0).chunks
    assert chunk.finish is Finish.CANCELLED
    assert not waiting.busy


def test_a_tokenizer_that_cannot_be_read_fails_the_request() -> None:
    def unreadable() -> str:
        raise OSError("tokenizer.json is gone")

    broken = make_engine(ReferenceBackend(), limits(), tokenizer_json=unreadable)
    replies = run(broken, constrained("a", "choice", ["ok"]), ask("b", PROMPT, max_tokens=2, ignore_eos=True))
    assert replies["a"].finish is Finish.FAILED
    assert "tokenizer.json is gone" in str(replies["a"].error)
    assert len(replies["b"].tokens) == 2


def test_the_library_is_loaded_with_the_first_grammar_only() -> None:
    script = "import sys, tokenworks.engine.engine; assert 'llguidance' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
