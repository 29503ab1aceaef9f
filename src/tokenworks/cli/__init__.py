"""The command line: one file per command, imported when it is called, because start-up time is a feature."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from tokenworks.protocol.errors import FactoryError, UserError

COMMANDS = {
    "serve": "start the factory: an OpenAI and Anthropic compatible server",
    "chat": "talk with a model in the terminal",
    "models": "list, pull and remove models",
    "quantize": "round a model's weights to fewer bits: NVFP4, MXFP4, INT8, FP8",
    "distil": "give a quantised model back what rounding took: a small adapter, trained",
    "audit": "what each precision of a model costs in quality, speed and memory",
    "bench": "measure speed and memory, of this factory or any compatible server",
    "doctor": "what this machine has, what will be used, what is missing",
    "version": "versions of everything that matters",
}

DESCRIPTION = """\
Tokenworks turns models and hardware into tokens: an inference engine and an OpenAI-compatible server in one package.

  tokenworks serve                 serve the default model on http://127.0.0.1:8000
  tokenworks serve ./model.gguf    serve your own: a GGUF file or a safetensors checkpoint folder
  tokenworks chat                  talk with a model, here in the terminal
"""

USER_ERROR_STATUS = 2
FACTORY_ERROR_STATUS = 1
INTERRUPTED_STATUS = 130


class Command(Protocol):
    """What a command's module offers."""

    DESCRIPTION: str
    """What it does, then examples."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Does it; returns the exit status. Raises UserError or FactoryError."""


def parser() -> argparse.ArgumentParser:
    """The parser without the commands' own arguments: enough to know which one is meant."""
    top = argparse.ArgumentParser(
        prog="tokenworks",
        description=DESCRIPTION,
        epilog="`tokenworks COMMAND --help` shows a command's options and examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return top


def command_parser(name: str) -> tuple[argparse.ArgumentParser, Command]:
    """A command's own parser, and its module."""
    command = cast(Command, importlib.import_module(f"tokenworks.cli.{name}"))
    own = argparse.ArgumentParser(
        prog=f"tokenworks {name}",
        description=command.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(own)
    return own, command


def _open_standard_streams() -> None:
    """Where one is closed (`>&-`), the next file or socket would take its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    _open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        words = ["version"]
    name = parser().parse_known_args(words[:1])[0].command
    own, command = command_parser(name)
    try:
        return command.run(own.parse_args(words[1:]))
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return USER_ERROR_STATUS
    except FactoryError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return FACTORY_ERROR_STATUS
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would complain once more at exit while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # The system's word on a file or a disk; what it is about is in the error.
        print(f"error: {error}", file=sys.stderr)
        return FACTORY_ERROR_STATUS
