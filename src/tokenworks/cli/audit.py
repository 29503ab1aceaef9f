"""tokenworks audit: what each precision of a model costs in quality, speed and memory on this machine."""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokenworks.protocol.clock import wall_time_s
from tokenworks.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from tokenworks.cli.step_bar import StepBar
    from tokenworks.quant.audit_types import Audit

DESCRIPTION = """\
Runs each model as stored, and rounded to int8, fp8, mxfp4 and nvfp4, over a text as it would be served here:
perplexity, KL divergence and agreement of best tokens with its own weights in float32, sixty small tasks, how long
greedy text stays the same, tokens per second, memory; and recommends one, with the reason. What 8-bit activations cost
and what an 8-bit KV cache costs is shown apart from what rounding the weights does. Nothing is written but the reports
you ask for.

MODEL is what `tokenworks serve` takes, or a factory.yaml: then each model that it serves. The default text is the
manual of the Python that runs this. Minutes for a model of 135 million weights on two cores; needs four bytes of memory
for each weight.

examples:
  tokenworks audit smollm2-135m
  tokenworks audit ./model.gguf --text mine.txt --json audit.json --html audit.html
  tokenworks audit factory.yaml --max-loss 1
"""

WINDOW_TOKENS = 256
PROMPTS, PROMPT_TOKENS = 8, 32
"""Passages that are continued greedily."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="MODEL", help="a model, or a factory.yaml with several")
    parser.add_argument("--text", nargs="+", type=Path, metavar="FILE", help="UTF-8 text, or folders of it")
    parser.add_argument("--json", metavar="FILE", type=Path, help="one object per candidate precision; - prints them")
    parser.add_argument("--html", metavar="FILE", type=Path, help="a page with the trade-off plotted")
    parser.add_argument(
        "--max-loss",
        type=_percent,
        default=2.0,
        metavar="PERCENT",
        help="of perplexity that a recommended precision may lose (default: 2)",
    )
    parser.add_argument(
        "--tokens", type=_tokens, default=2048, metavar="N", help="of text to read (default: 2048); more is surer"
    )


def run(arguments: argparse.Namespace) -> int:
    from tokenworks.bench.prompts import manual_texts
    from tokenworks.cli.step_bar import StepBar
    from tokenworks.quant.audit_report import as_objects
    from tokenworks.quant.text import read_texts

    texts = read_texts(arguments.text) if arguments.text else manual_texts()
    for file in (arguments.json, arguments.html):
        if file and not file.absolute().parent.is_dir():
            raise InvalidRequest(f"{file}: there is no such folder to write it to.")
        if file and file.is_dir():
            raise InvalidRequest(f"{file} is a folder; name a file to write.")
    audits = []
    with StepBar() as bar:
        for model in _models(arguments.sources):
            audits += _audit(model, texts, arguments, bar)
    if not audits:
        raise InvalidRequest("None of these models generates text: there is nothing to audit.")
    objects = json.dumps(as_objects(audits), indent=1) + "\n"
    if str(arguments.json) == "-":
        sys.stdout.write(objects)
        return 0
    if arguments.json:
        arguments.json.write_text(objects)
    if arguments.html:
        arguments.html.write_text(_page(audits, arguments.text), "utf-8")
    print("\n\n".join(_as_table(audit) for audit in audits))
    return 0


class _Model(NamedTuple):
    source: str
    name: str | None = None
    """In a deployment, where it gives one; so for `threads`."""
    threads: int | None = None


def _models(sources: Sequence[str]) -> list[_Model]:
    found = []
    for source in sources:
        if source.endswith((".yaml", ".yml")):
            from tokenworks.config_file import load

            factory = load(Path(source))
            found += [_Model(model.source, model.name, factory.engine.threads) for model in factory.models]
        else:
            found.append(_Model(source))
    return found


def _audit(model: _Model, texts: list[str], arguments: argparse.Namespace, bar: "StepBar") -> "list[Audit]":
    from tokenworks.cli.pull_bar import PullBar
    from tokenworks.kernels.cpu.backend import CpuBackend
    from tokenworks.models.checkpoint import open_checkpoint
    from tokenworks.models.sources.resolve import resolve
    from tokenworks.models.text.tokenizer import load_tokenizer
    from tokenworks.quant.audit import Text, audit
    from tokenworks.quant.task_questions import TASKS
    from tokenworks.quant.tasks import as_questions
    from tokenworks.quant.text import windows
    from tokenworks.telemetry.machine import machine

    with PullBar() as pull:
        found = resolve(model.source, pull)
    name = model.name or found.name
    checkpoint = open_checkpoint(found.path)
    if checkpoint.config.kind != "generate":
        does = "hears speech" if checkpoint.config.kind == "transcribe" else "makes vectors"
        bar.say(f"{name} {does}, not text: left out.")
        return []
    tokenizer = load_tokenizer(found.path)
    text = Text(
        windows(texts, tokenizer, count=arguments.tokens // WINDOW_TOKENS, length=WINDOW_TOKENS),
        windows(texts, tokenizer, count=PROMPTS, length=PROMPT_TOKENS),
        as_questions(TASKS, tokenizer),
    )
    done = audit(
        name,
        checkpoint.program(),
        checkpoint.tensors,
        text,
        CpuBackend(),
        threads=model.threads or machine().cores_allowed,
        max_loss=arguments.max_loss / 100,
        progress=lambda done, total, what: bar.step(name, done, total, what),
    )
    return [done]


def _as_table(audit: "Audit") -> str:
    from tokenworks.cli.terminal import size, table

    rows = [
        (
            *("", "PRECISION", "MEMORY", "PERPLEXITY", "LOSS", "KL", "TOP-1", "KL WEIGHTS ALONE", "KL 8-BIT KV TOO"),
            *("TASKS", "GREEDY", "PREFILL", "DECODE"),
        ),
        (
            "",
            "reference",
            "",
            f"{audit.reference_perplexity:.3f}",
            "",
            "",
            "",
            "",
            "",
            f"{audit.reference_marks.right:.0%}",
            "",
            "",
            "",
        ),
    ]
    for each in audit.candidates:
        figures = (
            size(each.weight_bytes),
            f"{each.served.perplexity:.3f}",
            f"{each.loss:+.2%}",
            f"{each.served.kl:.4f}",
        )
        kls = (f"{each.served.top1_agreement:.1%}", f"{each.weights_only.kl:.4f}", f"{each.kv_int8.kl:.4f}")
        speeds = (f"{each.prefill_tok_s:.0f} tok/s", f"{each.decode_tok_s:.0f} tok/s")
        mark = "*" if each.precision == audit.recommended else ""
        abilities = (f"{each.marks.right:.0%}", f"{each.greedy_alike:.0%}")
        rows.append((mark, each.precision, *figures, *kls, *abilities, *speeds))
    stored = audit.candidates[0]
    lines = [
        f"{audit.model}, stored as {stored.weights}; {audit.tokens} tokens of text",
        table(rows),
        "",
        *(
            f"{'*' if each.precision == audit.recommended else ' '} {each.precision}: {audit.reasons[each.precision]}"
            for each in audit.candidates
        ),
    ]
    lines += [f"! {each.precision}: {each.caution}" for each in audit.candidates if each.caution]
    return "\n".join(lines)


def _page(audits: "list[Audit]", text: list[Path] | None) -> str:
    from tokenworks.kernels.cpu.backend import CpuBackend
    from tokenworks.quant.audit_page import Circumstances, page
    from tokenworks.telemetry.machine import machine

    here = machine()
    read = ", ".join(map(str, text)) if text else f"the manual of Python {sys.version.split()[0]}"
    machine_text = f"{here.cpu}, {here.cores_allowed} cores, {CpuBackend().isa} kernels"
    command = shlex.join(("tokenworks", *sys.argv[1:]))
    date = datetime.fromtimestamp(wall_time_s()).date().isoformat()
    return page(audits, Circumstances(read, machine_text, command, date))


def _percent(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of percent, got {text!r}")
    return number


def _tokens(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < WINDOW_TOKENS:
        raise argparse.ArgumentTypeError(f"expected a whole number from {WINDOW_TOKENS}, got {text!r}")
    return number
