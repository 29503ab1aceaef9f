"""A scatter plot of an audit's candidates as SVG: divergence against what it buys."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 480, 340, 66, 48, 18, 24
_LETTER, _LINE, _GAP, _RADIUS = 7.6, 15.0, 4.0, 5.0
"""Pixels: a label's letter and line, its distance from a point, a point."""


class Point(NamedTuple):
    """One candidate."""

    label: str
    x: float
    kl: float
    """As served."""
    kl_weights_only: float
    strong: bool
    """The recommended one."""
    pale: bool
    """Beyond what may be lost."""


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "_Box") -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


def plot(title: str, x_name: str, points: Sequence[Point]) -> str:
    """KL on a logarithmic axis: a filled point as served, a ring for the weights alone, a dotted line between. Colours
    are the page's classes p0, p1, ... in the order of `points`."""
    x_top = _round_up(max(point.x for point in points))
    served = [max(point.kl, 1e-5) for point in points]
    highest = max(*served, *(point.kl_weights_only for point in points))
    low, high = math.floor(math.log10(min(served))), math.ceil(math.log10(highest) + 1e-9)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def x_at(x: float) -> float:
        return _LEFT + x / x_top * (right - _LEFT)

    def y_at(kl: float) -> float:
        share = (math.log10(max(kl, 10.0**low)) - low) / max(1, high - low)
        return bottom - share * (bottom - _TOP)

    below = any(point.kl_weights_only < 10.0**low for point in points)
    parts = [_axes(x_name, x_top, low, high, below=below)]
    marks = [(x_at(point.x), y_at(point.kl), y_at(point.kl_weights_only)) for point in points]
    names = [f"{point.label} ★" if point.strong else point.label for point in points]
    for number, (point, (x, y, alone), (text_x, text_y)) in enumerate(
        zip(points, marks, _places(names, marks), strict=True)
    ):
        weight = ' font-weight="700"' if point.strong else ""
        tip = f"{point.label}: {point.x:.4g}, KL {point.kl:.4g}, weights alone {point.kl_weights_only:.4g}"
        parts.append(
            f'<g class="p{number}{" pale" if point.pale else ""}"><title>{escape(tip)}</title>'
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{alone:.1f}" stroke-dasharray="2 3"/>'
            f'<circle cx="{x:.1f}" cy="{alone:.1f}" r="{_RADIUS}" fill="none"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/>'
            f'<text x="{text_x:.1f}" y="{text_y:.1f}"{weight}>'
            f"{escape(names[number])}</text></g>"
        )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>\n"
    )


def _axes(x_name: str, x_top: float, low: int, high: int, *, below: bool) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [
        f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>',
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        "KL to the reference, nats</text>",
    ]
    for power in range(low, high + 1):
        y = bottom - (power - low) / max(1, high - low) * (bottom - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        label = f"{'≤ ' if below and power == low else ''}{10.0**power:g}"
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for step in range(5):
        x = _LEFT + step / 4 * (right - _LEFT)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{x_top * step / 4:g}</text>')
    return "".join(parts)


def _places(names: Sequence[str], marks: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Where each name begins: beside, above or below its point, where it covers least of what is already there."""
    taken = [_Box(x - _RADIUS, min(y, alone) - _RADIUS, x + _RADIUS, max(y, alone) + _RADIUS) for x, y, alone in marks]
    inside = _Box(_LEFT, 0, _WIDTH, _HEIGHT - _BOTTOM - 2)
    placed = []
    for name, (x, y, _) in zip(names, marks, strict=True):
        wide, away = _LETTER * len(name), _RADIUS + _GAP
        tops = [y + (lines - 0.5) * _LINE for lines in (0, -0.75, 0.75, -1.75, 1.75, -2.75, 2.75)]
        lefts = (x + away, x - away - wide)
        corners = [(left, top) for top in tops for left in lefts]  # the nearest first: of equals, `min` takes the first
        corners += [(x - wide / 2, y - away - _LINE), (x - wide / 2, y + away)]
        tries = [_Box(left, top, left + wide, top + _LINE) for left, top in corners]
        best = min(tries, key=lambda box: _outside(box, inside) + sum(box.overlap(other) for other in taken))
        taken.append(best)
        placed.append((best.left, best.bottom - 3))
    return placed


def _outside(box: _Box, page: _Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top) - box.overlap(page)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten, so that quarters of it are short numbers."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)
