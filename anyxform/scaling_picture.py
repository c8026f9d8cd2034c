"""A picture of a scaling law beside the losses that it was fitted to."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anyxform.scaling import Law, Point

BEYOND = 10
"""How far beyond the measured tokens the law is drawn."""


def draw_scaling(law: Law, runs: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Save a PNG: loss against tokens for each run, measured and by the law; ValueError: matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        raise ValueError("the picture needs matplotlib: pip install 'anyxform[eval]'") from None
    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    most = max(point.tokens for points in runs.values() for point in points)
    for number, (name, points) in enumerate(runs.items()):
        tokens = np.geomspace(min(point.tokens for point in points), BEYOND * most, 100)
        label = f"{name}, {points[0].parameters / 1e6:.1f} M parameters"
        axes.plot([p.tokens for p in points], [p.loss for p in points], "o", ms=4, color=f"C{number}", label=label)
        axes.plot(tokens, [law.loss(points[0].parameters, n) for n in tokens], "-", lw=1, color=f"C{number}")
    axes.set_xscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("held-out loss")
    axes.set_title(
        f"{law.floor:.2f} + {law.a:.3g}/N^{law.alpha:.2f} + {law.b:.3g}/D^{law.beta:.2f}, error {law.error:.1%}",
        fontsize=9,
    )
    axes.legend(fontsize=8)
    figure.savefig(path)
