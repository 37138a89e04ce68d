"""Small plots as inline SVG, written by hand: a few kilobytes each, coloured by the page's style sheet.

Every function returns safe markup; labels are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from noisycorr.clean.report import plots

Line = tuple[str, Sequence[float], Sequence[float]]  # style class, x, y
Scale = Callable[[float], float]
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 10, 26


def histogram(
    edges: Sequence[float], parts: Mapping[str, Sequence[int]], label: str, *,
    lines: Sequence[Line] = (), curve: Line | None = None, mark: float | None = None,
    size: tuple[int, int] = (340, 170),
) -> Markup:  # fmt: skip
    """Stacked bars, with lines in units of the bars and a curve in [0, 1] on an axis of its own.

    Args:
        edges: b + 1 ascending numbers.
        parts: b counts for each style class, stacked in this order from the bottom.
        label: What is shown, for those who cannot see it.
        lines: Drawn over the bars, y in counts per bin.
        curve: Drawn over all, y in [0, 1], with an axis at the right.
        mark: x of a vertical dashed line.
        size: Width and height of the drawing.
    """
    width, height = size
    low, high = edges[0], edges[-1]
    heights = [sum(column) for column in zip(*parts.values())]
    bars = sorted(heights, reverse=True)
    spike = len(bars) > 2 and bars[0] > 4 * bars[2] > 0  # one or two bars must not hide all others
    tallest = max(2 * bars[2] if spike else bars[0], 1)
    drawn = max([b for _, xs, ys in lines for a, b in zip(xs, ys) if low <= a <= high], default=0)
    tallest = max(tallest, min(drawn, 1.6 * tallest))
    ticks = _ticks(0, tallest, height // 60)
    top = max(tallest, ticks[-1]) * 1.04
    right = width - RIGHT - (22 if curve else 0)

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * (value - low) / (high - low)

    def y(value: float) -> float:
        return height - BOTTOM - (height - BOTTOM - TOP) * min(value, top) / top

    body = [_axes(x, y, ticks, _ticks(low, high, 5), right, height)]
    base = [0.0] * len(heights)
    for name, counts in parts.items():
        rects = []
        for i, count in enumerate(counts):
            if count and y(base[i]) - y(base[i] + count) > 0.05:
                left, bottom, roof = x(edges[i]), y(base[i]), y(base[i] + count)
                rects.append(f"M{left:.1f} {bottom:.1f}V{roof:.1f}H{x(edges[i + 1]) - 0.4:.1f}V{bottom:.1f}z")
            base[i] += count
        body.append(f'<path class="{name}" d="{"".join(rects)}"/>')
    cut = [i for i, value in enumerate(heights) if value > top]
    body += [f'<path class="cut" d="M{x(edges[i]) - 2:.1f} {TOP + 5}l12 -5"/>' for i in cut]
    body += [_path(name, [x(a) for a in xs], [y(b) for b in ys], x(low), x(high)) for name, xs, ys in lines]
    if curve:
        name, xs, ys = curve
        body.append(_path(name, [x(a) for a in xs], [y(b * top / 1.04) for b in ys], x(low), x(high)))
        body += [f'<text x="{right + 5}" y="{y(p * top / 1.04) + 3:.1f}">{p:g}</text>' for p in (0, 0.5, 1)]
    if mark is not None and low <= mark <= high:
        body.append(f'<path class="mark" d="M{x(mark):.1f} {TOP}V{height - BOTTOM}"/>')
    return _svg(width, height, label, body, "large" if width > 400 else "")


def curves(lines: Sequence[Line], label: str, *, mark: float | None = None) -> Markup:
    """Numbers over epochs, one line each; a line of one point is a dot.

    Args:
        lines: Style class, epochs from 1, and values, all finite.
        label: What is shown, for those who cannot see it.
        mark: Epoch of a vertical dashed line.
    """
    width, height = 340, 190
    every = [value for _, _, ys in lines for value in ys]
    last = max(2.0, *(value for _, xs, _ in lines for value in xs))
    low, high = min(every), max(every)
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    low, high = low - room, high + room

    def x(value: float) -> float:
        return LEFT + (width - RIGHT - LEFT) * (value - 1) / (last - 1)

    def y(value: float) -> float:
        return height - BOTTOM - (height - BOTTOM - TOP) * (value - low) / (high - low)

    columns = [value for value in _ticks(1, last, 6) if value == int(value)]
    body = [_axes(x, y, _ticks(low, high, 6), columns, width - RIGHT, height)]
    if mark is not None:
        body.append(f'<path class="mark" d="M{x(mark):.1f} {TOP}V{height - BOTTOM}"/>')
    for name, xs, ys in lines:
        body.append(_path(name, [x(a) for a in xs], [y(b) for b in ys], x(1), x(last)))
        if len(xs) == 1:
            body.append(f'<circle class="dot" cx="{x(xs[0]):.1f}" cy="{y(ys[0]):.1f}" r="3.5"/>')
    return _svg(width, height, label, body)


def reliability(points: Sequence[tuple[float, float, int]], label: str) -> Markup:
    """Share of right pairs against `p_clean`; the diagonal is perfect calibration.

    Args:
        points: (mean p_clean, share of right pairs, pairs) of each bin.
        label: What is shown, for those who cannot see it.
    """
    width, height = 340, 300
    right, most = width - RIGHT, max([count for _, _, count in points], default=1)

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * value

    def y(value: float) -> float:
        return height - BOTTOM - (height - BOTTOM - TOP) * value

    ticks = [0, 0.25, 0.5, 0.75, 1]
    body = [_axes(x, y, ticks, ticks, right, height), f'<path class="mark" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>']
    body.append(_path("line", [x(a) for a, _, _ in points], [y(b) for _, b, _ in points], x(0), x(1)))
    for a, b, count in points:
        radius = 2.5 + 6 * math.sqrt(count / most)
        title = f"<title>p_clean {a:.3f}, right {b:.3f}, {count:,} pairs</title>"
        body.append(f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="{radius:.1f}">{title}</circle>')
    return _svg(width, height, label, body, "small")


def stacked_bar(parts: Sequence[tuple[str, str, int]], label: str) -> Markup:
    """One horizontal bar.

    Args:
        parts: (style class, name, count) from left to right.
        label: What is shown, for those who cannot see it.
    """
    total, at, body = max(sum(count for _, _, count in parts), 1), 0.0, []
    for style, name, count in parts:
        span = 1000 * count / total
        title = escape(f"{name}: {count:,}")
        body.append(f'<rect class="{style}" x="{at:.2f}" width="{span:.2f}" height="20"><title>{title}</title></rect>')
        at += span
    head = f'<svg class="bar" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(body) + "</svg>")


def heat(grid: Sequence[Sequence[int]], names: Sequence[str], across: Sequence[str], label: str) -> Markup:
    """A table of counts as shades; every row is scaled by its own sum.

    Args:
        grid: Counts, r rows of c.
        names: r names of rows.
        across: The names of the first and last column.
        label: What is shown, for those who cannot see it.
    """
    left, cell, columns = 74, 25, len(grid[0])
    width, height = left + cell * columns + 6, cell * len(grid) + 22
    body = []
    for i, (name, row) in enumerate(zip(names, grid)):
        middle = i * cell + cell / 2 + 3.5
        body.append(f'<text x="{left - 6}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        for j, count in enumerate(row):
            shade = count / sum(row) if sum(row) else 0
            title = f"<title>{count:,} ({100 * shade:.0f} %)</title>"
            place = f'x="{left + j * cell}" y="{i * cell}" width="{cell - 1}" height="{cell - 1}"'
            body.append(f'<rect class="none" {place}/>')
            body.append(f'<rect class="heat" {place} opacity="{math.sqrt(shade):.2f}">{title}</rect>')
    body.append(f'<text x="{left}" y="{height - 6}">{escape(across[0])}</text>')
    body.append(f'<text x="{width - 6}" y="{height - 6}" text-anchor="end">{escape(across[1])}</text>')
    return _svg(width, height, label, body, "heatmap")


def _svg(width: float, height: float, label: str, body: Sequence[str], style: str = "") -> Markup:
    head = f'<svg class="{style}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(body) + "</svg>")


def _axes(x: Scale, y: Scale, rows: Sequence[float], columns: Sequence[float], right: float, height: float) -> str:
    grid = "".join(f"M{LEFT} {y(value):.1f}H{right}" for value in rows)
    out = [f'<path class="grid" d="{grid}"/>']
    out += [f'<text x="{LEFT - 5}" y="{y(v) + 3:.1f}" text-anchor="end">{_short(v)}</text>' for v in rows]
    out += [f'<text x="{x(v):.1f}" y="{height - 9}" text-anchor="middle">{v:g}</text>' for v in columns]
    return "".join(out)


def _path(name: str, xs: Sequence[float], ys: Sequence[float], least: float, most: float) -> str:
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(xs, ys) if least - 0.5 <= a <= most + 0.5]
    return f'<path class="{name}" d="M{"L".join(points)}"/>' if points else ""


def _ticks(low: float, high: float, number: int) -> list[float]:
    """Round numbers within [low, high], about `number` of them."""
    raw = (high - low) / max(number, 1)
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    """1500 as 1.5k."""
    for limit, sign in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{sign}"
    return f"{value:g}"


STYLES = {"0": "clean", "1": "noise", "": "total"}


def curve(history: Sequence[Mapping[str, Any]], key: str, title: str, about: str, missing: str,
          best: int | None) -> dict[str, Any]:  # fmt: skip
    """One plot over epochs, of all networks; without values it says why there is none."""
    flat = [_flat(record) for record in history]
    lines: list[plots.Line] = []
    legend = []
    for place, style in STYLES.items():
        points = [(epoch + 1, row[name]) for epoch, row in enumerate(flat)
                  if (name := f"{key}_{place}" if place else key) in row]  # fmt: skip
        if points:
            lines.append((style, [x for x, _ in points], [y for _, y in points]))
            legend.append((style, f"network {int(place) + 1}" if place else "together"))
    if len(lines) == 1:
        lines, legend = [("clean", *lines[0][1:])], []
    mark = None if best is None or len(history) < 2 else best + 1
    drawn = [(f"line {style}", xs, ys) for style, xs, ys in lines]
    plot = plots.curves(drawn, f"{title} over epochs", mark=mark) if lines else None
    return {"title": title, "about": about, "missing": missing, "legend": legend, "plot": plot}


def _flat(record: Mapping[str, Any]) -> dict[str, float]:
    """Its numbers by name; those of a list, one for each network, get the network's number."""
    out: dict[str, float] = {}
    for name, value in record.items():
        values = {f"{name}_{i}" if len(value) > 1 else name: x for i, x in enumerate(value)} \
            if isinstance(value, list) else {name: value}  # fmt: skip
        out |= {k: x for k, x in values.items() if isinstance(x, int | float) and not isinstance(x, bool)}
    return out
