"""A run's losses as an SVG, for a page or a file of its own."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from anyxform.progress import by_pairs

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 44, 150, 12, 34
POINTS = 160
"""A curve is averaged to at most so many points."""

STYLE = """
.chart { width: 100%; max-width: 860px; height: auto; font-family: system-ui, sans-serif; }
.grid { stroke: var(--line, #d8d4cb); }
.tick, .label { fill: var(--soft, #7a7688); font-size: 11px; font-variant-numeric: tabular-nums; }
.curve { fill: none; stroke-width: 1.4; stroke: currentColor; }
.curve.total { stroke-width: 3; }
.curve.validation { stroke-dasharray: 5 4; }
.label { fill: currentColor; }
.c0 { color: var(--accent, #5b3df5); } .c1 { color: #e0703c; } .c2 { color: #2d9c74; } .c3 { color: #c94f8f; }
.c4 { color: #3e8ede; } .c5 { color: #b39320; } .c6 { color: #7f6fd0; } .c7 { color: #5f9ea0; }
"""
"""Colours of the page around it, where it gives them."""

Curve = list[tuple[float, float]]


def training_curve(journal: Sequence[Mapping[str, Any]]) -> str:
    """The lines of metrics.jsonl as an SVG: the loss of every pair of modalities, the total, and validation."""
    curves: dict[str, Curve] = {"all": []}
    for line in journal:
        step = float(line["step"])
        totals = {"all": line.get("loss"), "validation": line.get("val_loss")}
        for name, value in {**totals, **by_pairs(line.get("directions") or {})}.items():
            if value is not None:
                curves.setdefault(name, []).append((step, value))
    curves = {name: curve if name == "validation" else _averaged(curve) for name, curve in curves.items() if curve}
    return _svg(curves) if curves else ""


def _averaged(curve: Curve) -> Curve:
    size = -(-len(curve) // POINTS)
    chunks = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _svg(curves: Mapping[str, Curve]) -> str:
    last = max(x for curve in curves.values() for x, _ in curve)
    top = _ceiling(max(y for curve in curves.values() for _, y in curve))

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / last * (WIDTH - LEFT - RIGHT), TOP + (1 - y / top) * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(last, top, place)]
    labels = _spread({name: place(*curve[-1])[1] for name, curve in curves.items()})
    for number, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        kind = "total" if name == "all" else re.sub(r"[^\w>+-]", "-", name)
        style = f'class="curve c{number % 8} {kind}"'
        parts.append(f'<polyline {style} points="{points}"/>')
        end = WIDTH - RIGHT
        text = f"{escape(name.replace('>', ' → '))} {curve[-1][1]:.2f}"
        parts.append(f'<text class="label c{number % 8}" x="{end + 8}" y="{labels[name] + 4:.1f}">{text}</text>')
    head = f'xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {HEIGHT}"'
    body = f"<style>{STYLE}</style>{''.join(parts)}"
    return f'<svg {head} role="img" aria-label="training curve">{body}</svg>'


def _axes(last: float, top: float, place: Any) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        step, loss = last * share, top * share
        x, y = place(step, loss)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:g}</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{step:,.0f}</text>')
    return "".join(parts)


def _ceiling(value: float) -> float:
    """The next number above that divides well by four."""
    return next(step for step in (0.4, 1, 2, 4, 6, 8, 12, 16, 20, 40, 100, 1e3, 1e4, float("inf")) if step >= value)


def _spread(heights: Mapping[str, float], apart: float = 15) -> dict[str, float]:
    """Labels' heights moved down so far that none covers another, then all up if they leave the picture."""
    placed: dict[str, float] = {}
    previous = float("-inf")
    for name in sorted(heights, key=lambda name: heights[name]):
        previous = placed[name] = max(heights[name], previous + apart)
    excess = max(0.0, previous - (HEIGHT - BOTTOM)) if placed else 0.0
    return {name: height - excess for name, height in placed.items()}
