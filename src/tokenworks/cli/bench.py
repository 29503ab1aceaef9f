"""tokenworks bench: speed and memory, measured the way a client feels them."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tokenworks.models.sources.catalogue import DEFAULT_MODEL
from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import InvalidRequest

DESCRIPTION = """\
Measures a server from outside, over HTTP, one point after the other: prefill of 512 tokens, decoding for one client,
all output tokens over wall time for 4, 16 and 64 clients at once (128 tokens in, 128 out each), the worst time to a
first token, peak memory. Greedy, with prompts of real text that no two requests share.

Without --url a factory is started, so that its start is measured too. With --url any OpenAI-compatible server will do
(llama.cpp, vLLM, ...): the same client, the same prompts. Medians of --repeats; the JSON has each repeat.

examples:
  tokenworks bench
  tokenworks bench ./model.gguf --json ours.json
  tokenworks bench --url http://127.0.0.1:8080 --model other --json theirs.json
  tokenworks bench --at-once 4 --repeats 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="MODEL", help=f"the model to serve (default: {DEFAULT_MODEL})")
    parser.add_argument("--url", help="measure this running server instead of starting one")
    parser.add_argument("--model", metavar="NAME", help="the name to ask the server for (default: the first it serves)")
    parser.add_argument("--json", metavar="FILE", help="write the figures, with every repeat, to this file")
    parser.add_argument("--config", metavar="FILE", help="factory.yaml for the factory that is started")
    parser.add_argument("--repeats", type=_positive, default=3, metavar="N", help="of each measurement (default: 3)")
    parser.add_argument(
        "--at-once",
        type=_positive,
        nargs="+",
        default=[4, 16, 64],
        metavar="N",
        help="clients at once (default: 4 16 64)",
    )
    parser.add_argument("--seed", type=int, help="which parts of the text to use (default: another in each run)")


def run(arguments: argparse.Namespace) -> int:
    from tokenworks.bench.report import bench_own, bench_url
    from tokenworks.cli.pull_bar import PullBar
    from tokenworks.models.sources.resolve import resolve

    if arguments.json and not Path(arguments.json).resolve().parent.is_dir():
        raise InvalidRequest(f"--json {arguments.json}: there is no such folder.")
    how = {
        "concurrency": arguments.at_once,
        "repeats": arguments.repeats,
        "seed": arguments.seed if arguments.seed is not None else int(wall_time_s()),
        "progress": lambda text: print(f"measuring: {text}", file=sys.stderr, flush=True),
    }
    if arguments.url:
        report = asyncio.run(bench_url(arguments.url, arguments.model, **how))
    else:
        source = arguments.source or DEFAULT_MODEL
        with PullBar() as bar:
            resolve(source, bar)
        config = ["--config", arguments.config] if arguments.config else []
        report = asyncio.run(bench_own([source, *config], **how))
    print(_as_table(report))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _as_table(report: dict[str, object]) -> str:
    from tokenworks.cli.terminal import table

    points = report["points"]
    assert isinstance(points, list)
    rows = [("POINT", "MEDIAN", "UNIT", "REPEATS")]
    rows += [
        (point["name"], _figure(point["value"]), point["unit"], " ".join(_figure(value) for value in point["repeats"]))
        for point in points
    ]
    return table(rows)


def _figure(value: float) -> str:
    """Three digits that matter, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return int(text)
