"""What every command shares: help that teaches, exit statuses, errors without tracebacks, a quick start."""

import subprocess
import sys

import pytest
from command import run

from tokenworks.cli import COMMANDS


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"    {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: tokenworks {name} ")
    assert f"examples:\n  tokenworks {name}" in done.stdout


@pytest.mark.parametrize(
    ("program", "without"),
    [
        ("from tokenworks import cli; cli.main(['-h'])", "numpy httpx uvicorn rich msgspec asyncio"),
        ("from tokenworks import cli; cli.main(['version'])", "numpy httpx uvicorn rich msgspec asyncio"),
        ("import tokenworks.cli.serve, tokenworks.gateway.server", "numpy httpx uvicorn starlette zipfile"),
        ("import tokenworks.gateway.http_server", "numpy httpx PIL"),
    ],
)
def test_a_start_loads_what_it_needs(program: str, without: str) -> None:
    """What is imported until a worker is spawned, and then until the gateway answers, is what a start waits for."""
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {program}"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(without.split()) & set(modules)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["serve", "--port", "99999"], "expected a whole number from 0 to 65535"),
        (["serve", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["serve", "smollm-135m"], "Did you mean smollm2-135m?"),
        (["serve", "./absent.gguf"], "There is no file or folder ./absent.gguf"),
        (["serve", "--name", "x"], "--name names the MODEL"),
        (["serve", "--config", "./absent.yaml"], "absent.yaml: cannot be read: No such file"),
        (["models", "pull", "hf:no-slash"], "expected hf:ORG/NAME"),
        (["models", "remove", "gemma3"], "gemma3 has not been pulled"),
        (["chat", "--url", "http://127.0.0.1:9"], "is a server there?"),
        (["chat", "--url", "nonsense"], "is a server there?"),
        (["bench", "--url", "ftp://x"], "expected http://HOST:PORT"),
        (["bench", "--repeats", "0"], "expected a whole number above 0"),
        (["bench", "--repeats", "x"], "expected a whole number above 0, got x"),
        (["bench", "--url", "http://127.0.0.1:9"], "is a server there?"),
        (["bench", "--url", "http://127.0.0.1:9", "--json", "./absent/a.json"], "there is no such folder"),
    ],
)
def test_a_users_mistake_is_status_2_and_says_what_to_do(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "error: " in done.stderr and said in done.stderr
    assert done.stdout == ""


def test_a_reader_that_leaves_early_is_no_error() -> None:
    pipe = f"{sys.executable} -m tokenworks models list --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
