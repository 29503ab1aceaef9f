"""Every wrong factory.yaml is answered with file, line, what was expected; every right one with its values."""

from pathlib import Path

import pytest

from tokenworks.config import EngineSettings, Factory, ServedModel, ServerSettings
from tokenworks.config_file import load, parse
from tokenworks.protocol.errors import ConfigError

EVERYTHING = """\
models:
  - source: ./model.gguf
    name: mine
    start: on_demand
engine:
  {threads: 2, context_tokens: 1024, cache_mb: 64, cache_dtype: float32, block_tokens: 32, speculation: false,
   draft_model: ./small.gguf}
server:
  host: 0.0.0.0
  port: 0
  max_body_mb: 1
  max_waiting: 2
"""


def test_all_keys() -> None:
    factory = parse(EVERYTHING, "factory.yaml")
    assert factory.models == (ServedModel(source="./model.gguf", name="mine", start="on_demand"),)
    assert factory.engine == EngineSettings(
        threads=2,
        context_tokens=1024,
        cache_mb=64,
        cache_dtype="float32",
        block_tokens=32,
        speculation=False,
        draft_model="./small.gguf",
    )
    assert factory.server == ServerSettings(host="0.0.0.0", port=0, max_body_mb=1, max_waiting=2)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "engine: {}\n"])
def test_the_file_may_say_nothing(text: str) -> None:
    assert parse(text, "factory.yaml") == Factory()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("server:\n  prot: 80\n", 2, "unknown key `prot` in server. Did you mean `port`? Known: host, port"),
        ("modles: []\n", 1, "unknown key `modles` in the file. Did you mean `models`?"),
        (
            "server:\n  host: a\n  port: eighty\n",
            3,
            "server.port: expected a whole number from 0 to 65535, got 'eighty'",
        ),
        ("server:\n  port: 70000\n", 2, "server.port: expected a whole number from 0 to 65535, got 70000"),
        ("engine:\n  threads: 0\n", 2, "engine.threads: expected a whole number above 0, got 0"),
        ("engine:\n  speculation: 2\n", 2, "engine.speculation: expected `true` or `false`, got 2"),
        (
            "engine:\n  cache_dtype: int4\n",
            2,
            "expected `bfloat16` or `float16` or `float32` or `fp8` or `int8`, got 'int4'",
        ),
        ("models:\n  - source: a\n    start: later\n", 3, "models.0.start: expected `now` or `on_demand`, got 'later'"),
        ("models:\n  - name: a\n", 2, "models.0 lacks `source`"),
        (
            "models: smollm2-135m\n",
            1,
            "models: expected a list, each keys of source, name, start, adapters, got 'smollm2-135m'",
        ),
        (
            "server:\n",
            1,
            "server: expected keys of host, port, max_body_mb, max_audio_mb, max_waiting, adapters_folder, picture",
        ),
        ("- a\n", 1, "the file: expected keys of models, engine, server, got another shape"),
        ("server:\n  port: 1\n  port: 2\n", 3, "`port` is there twice"),
        ("server: {port: 1\n", 2, "not YAML"),
        ("a: b: c\n", 1, "not YAML"),
        ("a: \x00\n", 1, "not YAML"),
        ("models:\n  &all [*all]\n", 2, "a value contains itself"),
        ("models: !!set {a}\n", 1, "expected plain keys and values, got set"),
    ],
)
def test_complaints(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "factory.yaml")
    assert caught.value.message.startswith(f"factory.yaml:{line}: ")
    assert words in caught.value.message


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "absent.yaml")
