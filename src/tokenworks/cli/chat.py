"""tokenworks chat: a streaming conversation in the terminal."""

import argparse
import contextlib
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from tokenworks.models.sources.catalogue import DEFAULT_MODEL
from tokenworks.protocol.errors import TokenworksError

if TYPE_CHECKING:
    from tokenworks.cli.chat_client import Conversation  # imports httpx: a fifth of a second that --help need not pay

DESCRIPTION = """\
Talk with a model. Without --url a factory is started for it on a free port, and stopped at the end.

Ctrl-C stops an answer, twice leaves. Piped input is one question: the answer goes to standard output.

examples:
  tokenworks chat
  tokenworks chat ./model.gguf --system "Answer in one sentence."
  tokenworks chat --url http://127.0.0.1:8000
  echo "Why is the sky blue?" | tokenworks chat
"""

HELP = """\
  /clear   forget what was said
  /help    this
  /quit    leave (so do Ctrl-D, and Ctrl-C twice)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a source (see `tokenworks models --help`), or with --url a name served there",
    )
    parser.add_argument("--url", help="talk to a running server, ours or any OpenAI-compatible one")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--temperature", type=float, default=0.3, help="default: 0.3; small models wander at more")
    parser.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="the longest answer (default: 1024)")
    parser.add_argument("--config", metavar="FILE", help="factory.yaml for the factory that is started")


def run(arguments: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        if arguments.url:
            url, model = arguments.url, arguments.model
        else:
            from tokenworks.cli.own_factory import own_factory
            from tokenworks.cli.pull_bar import PullBar
            from tokenworks.models.sources.resolve import resolve

            source = arguments.model or DEFAULT_MODEL
            with PullBar() as bar:
                resolve(source, bar)
            url, model = stack.enter_context(own_factory(source, arguments.config)), None

        from tokenworks.cli.chat_client import Conversation

        options = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens}
        conversation = stack.enter_context(closing(Conversation(url, model, arguments.system, options)))
        conversation.model_name()
        if sys.stdin.isatty():
            _interactive(conversation)
        else:
            _answer(conversation, sys.stdin.read())
    return 0


def _interactive(conversation: "Conversation") -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing and history

    print(f"{conversation.model_name()} at {conversation.url}. /help shows what you can type.", file=sys.stderr)
    interrupted = False
    while True:
        try:
            question = input("> ").strip()
            interrupted = False
            if question == "/quit":
                return
            if question == "/clear":
                conversation.clear()
                print("Forgotten.", file=sys.stderr)
            elif question.startswith("/"):
                print(HELP, file=sys.stderr)
            elif question:
                _answer(conversation, question)
                print(f"({conversation.stats})", file=sys.stderr)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if interrupted:
                print()
                return
            interrupted = True
            print("\n(stopped; Ctrl-C again leaves)", file=sys.stderr)
        except TokenworksError as error:
            print(f"error: {error.message}", file=sys.stderr)


def _answer(conversation: "Conversation", question: str) -> None:
    with closing(conversation.ask(question)) as pieces:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    print()
