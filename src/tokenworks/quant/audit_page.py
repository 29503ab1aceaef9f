"""An audit as one HTML page: its trade-offs plotted, its figures and reasons as tables. It loads nothing."""

import math
from collections.abc import Callable, Sequence
from html import escape

from tokenworks.quant.audit_types import Audit, Candidate

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 460, 320, 62, 44, 16, 70
_COLOURS = ("#5b6470", "#0072b2", "#d55e00", "#009e73", "#aa3377")  # told apart by colour-blind eyes too

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child, td.text { text-align: left }
tr.recommended { background: #009e7322; font-weight: 600 }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
figcaption { font-weight: 600 }
svg text { fill: currentColor; font-size: 12px }
.axis { stroke: currentColor; opacity: .5 } .grid { stroke: currentColor; opacity: .12 }
"""


def page(audits: Sequence[Audit], text: str, machine: str) -> str:
    """`text` names what was read, `machine` what it ran on."""
    body = "\n".join(_model(audit) for audit in audits)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Precision audit</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        f"<h1>Precision audit</h1>\n<p>Text: {escape(text)}. Machine: {escape(machine)}.</p>\n{body}\n</body></html>\n"
    )


def _model(audit: Audit) -> str:
    best = next(each for each in audit.candidates if each.precision == audit.recommended)
    return (
        f"<h2>{escape(audit.model)}</h2>\n"
        f"<p>Recommended: <b>{best.precision}</b>: {escape(audit.reasons[best.precision])}.</p>\n"
        + _plot("Speed against divergence", "decode, tokens per second", lambda each: each.decode_tok_s, audit)
        + _plot("Memory against divergence", "weights in memory, MB", lambda each: each.weight_bytes / 1e6, audit)
        + _table(audit)
        + _notes(audit)
    )


def _plot(title: str, x_name: str, x_of: Callable[[Candidate], float], audit: Audit) -> str:
    """KL on a logarithmic axis: as served, and the weights alone as a ring of the same colour."""
    points = [(x_of(each), each.served.kl, each.weights_only.kl) for each in audit.candidates]
    x_top = _round_up(max(x for x, _, _ in points))
    values = [kl for _, *kls in points for kl in kls if kl > 0]
    low, high = math.floor(math.log10(max(min(values), 1e-6))), math.ceil(math.log10(max(values)) + 1e-9)

    def x_at(x: float) -> float:
        return _LEFT + x / x_top * (_WIDTH - _LEFT - _RIGHT)

    def y_at(kl: float) -> float:
        share = (math.log10(max(kl, 10.0**low)) - low) / max(1, high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>',
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(14 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">KL to the reference</text>',
    ]
    for power in range(low, high + 1):
        y = y_at(10.0**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for step in range(5):
        x = x_top * step / 4
        parts.append(f'<text x="{x_at(x):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    for number, (candidate, (x, kl, alone)) in enumerate(zip(audit.candidates, points, strict=True)):
        colour, name = _COLOURS[number % len(_COLOURS)], escape(candidate.precision)
        star = " ★" if candidate.precision == audit.recommended else ""
        at, served, plain = f"{x_at(x):.1f}", f"{y_at(kl):.1f}", f"{y_at(alone):.1f}"
        parts.append(
            f'<g stroke="{colour}" fill="{colour}">'
            f"<title>{name}: {x:.4g}, KL {kl:.4g}, weights alone {alone:.4g}</title>"
            f'<line x1="{at}" y1="{served}" x2="{at}" y2="{plain}" stroke-dasharray="2 3"/>'
            f'<circle cx="{at}" cy="{plain}" r="5" fill="none"/><circle cx="{at}" cy="{served}" r="5"/></g>'
            f'<text x="{x_at(x) + 9:.1f}" y="{y_at(kl) + 4:.1f}">{name}{star}</text>'
        )
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg></figure>\n"
    )


def _table(audit: Audit) -> str:
    heads = (
        *("precision", "weights", "memory, MB", "perplexity", "against reference", "KL", "best token agrees"),
        *("KL, weights alone", "KL, 8-bit KV too", "continuations right", "prefill, tok/s", "decode, tok/s"),
    )
    rows = [
        '<tr><td>reference</td><td class="text">in float32</td><td></td>'
        f"<td>{audit.reference_perplexity:.3f}</td><td></td><td>0</td><td></td><td></td><td></td>"
        f"<td>{audit.reference_right:.0%}</td><td></td><td></td></tr>"
    ]
    for each in audit.candidates:
        cells = (
            *(f"{each.weight_bytes / 1e6:.1f}", f"{each.served.perplexity:.3f}", f"{each.loss:+.2%}"),
            *(f"{each.served.kl:.4f}", f"{each.served.top1_agreement:.1%}", f"{each.weights_only.kl:.4f}"),
            *(f"{each.kv_int8.kl:.4f}", f"{each.right:.0%}", f"{each.prefill_tok_s:.0f}", f"{each.decode_tok_s:.0f}"),
        )
        marked = ' class="recommended"' if each.precision == audit.recommended else ""
        rows.append(
            f'<tr{marked}><td>{escape(each.precision)}</td><td class="text">{escape(each.weights)}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>\n" + "\n".join(rows) + "</table>\n"


def _notes(audit: Audit) -> str:
    lines = [f"<b>{escape(each.precision)}</b>: {escape(audit.reasons[each.precision])}." for each in audit.candidates]
    lines += [
        f"<b>Caution, {escape(each.precision)}</b>: {escape(each.caution)}."
        for each in audit.candidates
        if each.caution
    ]
    lines.append(
        f"KV cache: {audit.kv_bytes_per_token / 1e3:.1f} kB a token in 16 bits, "
        f"{audit.kv_int8_bytes_per_token / 1e3:.1f} kB in 8."
    )
    lines.append(
        f"Over {audit.tokens:,} tokens and {audit.questions} continuations. Filled points: as served; rings: the "
        "weights alone, in float32 arithmetic; between them lies what 8-bit activations and a 16-bit KV cache cost."
    )
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten, so that quarters of it are short numbers."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)
