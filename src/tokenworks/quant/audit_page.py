"""An audit as one HTML page: its advice, its trade-offs plotted, its figures as tables. It loads nothing."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tokenworks.quant.audit_plot import Point, plot
from tokenworks.quant.audit_types import Audit, Candidate

# Colours that colour-blind eyes tell apart too; lighter ones on a dark page.
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; --ink: #1c2024; --quiet: #5b6470;
  --line: #8885; --good: #00795a; --wash: #009e7318; --page: #fff;
  --p0: #5b6470; --p1: #0072b2; --p2: #c44f00; --p3: #00795a; --p4: #aa3377 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --quiet: #a0a8b0; --good: #3ccb9f; --wash: #3ccb9f1c;
  --page: #15181b; --p0: #b5bcc4; --p1: #56b4e9; --p2: #ff9457; --p3: #3ccb9f; --p4: #e58abf } }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); background: var(--page) }
h1 { margin-bottom: .2rem } h2 { margin: 2.5rem 0 .5rem } h2 small { font-weight: 400; color: var(--quiet) }
code { overflow-wrap: anywhere } h1 + p code { display: block } .quiet { color: var(--quiet) }
.advice { border-left: 4px solid var(--good); background: var(--wash); padding: .6rem 1rem; margin: 1rem 0 }
.advice b { color: var(--good) }
.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem } figure { flex: 1 1 18rem; max-width: 34rem; margin: 0 }
figcaption { font-weight: 600 } svg { width: 100%; height: auto; display: block } svg text { fill: currentColor }
svg { font-size: 13.5px } .axis { stroke: currentColor; opacity: .5 } .grid { stroke: currentColor; opacity: .12 }
.p0 { color: var(--p0) } .p1 { color: var(--p1) } .p2 { color: var(--p2) } .p3 { color: var(--p3) }
.p4 { color: var(--p4) } svg g { stroke: currentColor; fill: currentColor } svg g text { stroke: none }
.pale { opacity: .55 }
.wide { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: baseline }
th { font-weight: 600; color: var(--quiet); font-size: .87rem; line-height: 1.3; vertical-align: bottom }
th:first-child, td:first-child, .text { text-align: left }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page) } td { white-space: nowrap }
td.why { white-space: normal; min-width: 13rem } tr.recommended { background: var(--wash) }
tr.recommended td:first-child { font-weight: 700; color: var(--good);
  background: linear-gradient(var(--wash), var(--wash)), var(--page) }
details { margin: 1rem 0 } summary { cursor: pointer; font-weight: 600 }
"""


class Circumstances(NamedTuple):
    """What people need to judge figures, or to get them again."""

    text: str
    """What was read."""
    machine: str
    command: str
    date: str


def page(audits: Sequence[Audit], circumstances: Circumstances) -> str:
    """The whole page, UTF-8."""
    text, machine, command, date = map(escape, circumstances)
    body = "\n".join(map(_model, audits))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Precision audit</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n<body>\n'
        f"<h1>Precision audit</h1>\n"
        f'<p class="quiet">Measured on {machine}, {date}, over {text}, by <code>{command}</code></p>\n'
        f"{_overview(audits) if len(audits) > 1 else ''}{body}\n</body></html>\n"
    )


def _overview(audits: Sequence[Audit]) -> str:
    heads = ("model", "recommended", "memory, MB", "perplexity lost", "decode, tok/s")
    rows = [
        (
            *(escape(audit.model), best.precision, f"{best.weight_bytes / 1e6:.1f}"),
            *(f"{best.loss:+.2%}", f"{best.decode_tok_s:.0f}"),
        )
        for audit in audits
        for best in [_best(audit)]
    ]
    return _table(heads, rows)


def _model(audit: Audit) -> str:
    best, stored = _best(audit), audit.candidates[0]
    cautions = [
        f"<li><b>{escape(each.precision)}</b>: {escape(each.caution)}.</li>"
        for each in audit.candidates
        if each.caution
    ]
    mind = f"<p>When reading these figures, mind:</p><ul>{''.join(cautions)}</ul>\n" if cautions else ""
    return (
        f"<section><h2>{escape(audit.model)} <small>stored as {escape(stored.weights)}</small></h2>\n"
        f'<p class="advice">Recommended: <b>{best.precision}</b>, {escape(audit.reasons[best.precision])}.</p>\n'
        f'<div class="plots">{_plots(audit)}</div>\n'
        '<p class="quiet">Lower is closer to the reference, which is the stored weights in float32 arithmetic. Filled '
        "points: as served; rings: the rounded weights alone, in float32 arithmetic; between them lies what 8-bit "
        f"activations and a 16-bit KV cache cost. Pale: loses more than {audit.max_loss:.1%} of perplexity.</p>\n"
        f"{_figures(audit)}{mind}{_details(audit)}</section>\n"
    )


def _best(audit: Audit) -> Candidate:
    return next(each for each in audit.candidates if each.precision == audit.recommended)


def _plots(audit: Audit) -> str:
    def points(x_of: dict[str, float]) -> list[Point]:
        return [
            Point(
                *(each.precision, x_of[each.precision], each.served.kl, each.weights_only.kl),
                strong=each.precision == audit.recommended,
                pale=each.loss > audit.max_loss,
            )
            for each in audit.candidates
        ]

    speeds = {each.precision: each.decode_tok_s for each in audit.candidates}
    sizes = {each.precision: each.weight_bytes / 1e6 for each in audit.candidates}
    return plot("Speed against divergence", "decode, tokens per second", points(speeds)) + plot(
        "Memory against divergence", "weights in memory, MB", points(sizes)
    )


def _figures(audit: Audit) -> str:
    heads = (
        *("precision", "memory, MB", "perplexity", "lost", "KL, nats", "same best token"),
        *("tasks right", "greedy text alike", "prefill, tok/s", "decode, tok/s", "why, or why not"),
    )
    reference = f"{audit.reference_perplexity:.3f}", "", "0", "", f"{audit.reference_marks.right:.0%}"
    rows: list[tuple[str, ...]] = [("reference", "", *reference, "", "", "", "")]
    rows += [
        (
            *(escape(each.precision), f"{each.weight_bytes / 1e6:.1f}"),
            *(f"{each.served.perplexity:.3f}", f"{each.loss:+.2%}", f"{each.served.kl:.4f}"),
            *(f"{each.served.top1_agreement:.1%}", f"{each.marks.right:.0%}", f"{each.greedy_alike:.0%}"),
            *(f"{each.prefill_tok_s:.0f}", f"{each.decode_tok_s:.0f}", escape(audit.reasons[each.precision])),
        )
        for each in audit.candidates
    ]
    return _table(heads, rows, why=len(heads) - 1, recommended=audit.recommended)


def _details(audit: Audit) -> str:
    kinds = tuple(dict.fromkeys(audit.reference_marks.kinds))
    heads = (
        *(
            "precision",
            "weights",
            "KL, weights alone",
            "KL, as served",
            "KL, 8-bit KV cache too",
            "decode with it, tok/s",
        ),
        *kinds,
        "same pick as the reference",
    )

    def marks(of: Candidate | Audit) -> list[str]:
        marks = of.reference_marks if isinstance(of, Audit) else of.marks
        return [f"{right} of {count}" for right, count in (marks.right_of(kind) for kind in kinds)]

    rows = [("reference", "float32", "0", "", "", "", *marks(audit), "")]
    for each in audit.candidates:
        kls = (f"{divergence.kl:.4f}" for divergence in (each.weights_only, each.served, each.kv_int8))
        speed = f"{each.kv_int8_decode_tok_s:.0f}"
        formats = escape(each.weights)
        rows.append((escape(each.precision), formats, *kls, speed, *marks(each), f"{each.same_answers:.0%}"))
    return (
        "<details open><summary>Where the loss comes from, and what it does</summary>\n"
        f"{_table(heads, rows, text=(1,), recommended=audit.recommended)}"
        f'<p class="quiet">Perplexity and divergence are over {audit.tokens:,} tokens. Tasks: '
        f"{len(audit.reference_marks.kinds)} questions of four answers each. Greedy text: how much of the "
        f"continuations of {audit.prompts} passages comes before the first token that differs from the reference's. "
        f"A KV cache takes {audit.kv_bytes_per_token / 1e3:.1f} kB a token in 16 bits, "
        f"{audit.kv_int8_bytes_per_token / 1e3:.1f} kB in 8.</p></details>\n"
    )


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text: Sequence[int] = (),
    why: int | None = None,
    recommended: str | None = None,
) -> str:
    """Cells are HTML. `text` and `why` are the numbers of columns with words and with sentences."""
    classes = {**dict.fromkeys(text, ' class="text"'), **({why: ' class="text why"'} if why is not None else {})}
    head = "".join(f"<th{classes.get(at, '')}>{name}</th>" for at, name in enumerate(heads))
    body = []
    for row in rows:
        cells = "".join(f"<td{classes.get(at, '')}>{cell}</td>" for at, cell in enumerate(row))
        marked = ' class="recommended"' if row[0] == recommended else ""
        body.append(f"\n<tr{marked}>{cells}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(body)}</table></div>\n'
