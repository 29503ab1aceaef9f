"""tokenworks version: what a bug report needs."""

import argparse
import json
import platform

from tokenworks import __version__

DESCRIPTION = """\
Versions of the package, Python and the compiled kernels, and the instruction set that they will use here.

examples:
  tokenworks version
  tokenworks version --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    facts = {
        "tokenworks": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "kernels": kernels(),
    }
    if arguments.json:
        print(json.dumps(facts, indent=1))
    else:
        for name, value in facts.items():
            print(f"{name:12}{value}")
    return 0


def kernels() -> str:
    """The instruction set of the compiled kernels, or what keeps them from running."""
    try:
        from tokenworks.kernels.cpu import _cpu  # the backend around it would import numpy
    except ImportError as error:
        return f"not built ({error})"
    trouble = _cpu.isa_trouble()
    return f"{_cpu.isa()} ({trouble})" if trouble else _cpu.isa()
