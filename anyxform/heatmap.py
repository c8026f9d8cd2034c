"""A picture of a report: source fields × target fields."""

from collections.abc import Sequence
from pathlib import Path

from anyxform.evaluate import MODEL, Row


def draw_heatmap(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """Save a PNG: in each cell the headline's value, its colour the share of samples won against the best baseline.

    Without baselines a cell is coloured by its place between the worst and the best value of the same metric.
    A ValueError says how to get matplotlib where it is missing.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        raise ValueError("the heat map needs matplotlib: pip install 'anyxform[eval]'") from None
    cells = {tuple(row.direction.split(">")): row for row in rows}
    sources, targets = (sorted({cell[side] for cell in cells}) for side in (0, 1))
    goodness = dict(zip(cells, _goodness(rows)))
    grid = [[goodness.get((source, target), float("nan")) for target in targets] for source in sources]
    figure = Figure(figsize=(2.4 + 0.72 * len(targets), 1.6 + 0.42 * len(sources)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(targets)), targets, rotation=45, ha="left", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(sources)), sources, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_title(title, fontsize=9)
    for (source, target), row in cells.items():
        value = row.systems[MODEL][row.headline].value
        where = (targets.index(target), sources.index(source))
        axes.text(*where, f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}", ha="center", va="center", fontsize=7)
    against = any(row.strongest(row.headline) for row in rows)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label("share won against the best baseline" if against else "worst … best of the metric", fontsize=8)
    figure.savefig(path)


def _goodness(rows: Sequence[Row]) -> list[float]:
    """For each row a number from 0 to 1."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.headline, []).append(row.systems[MODEL][row.headline].value)
    return [_share_won(row) if row.strongest(row.headline) else _place(row, values[row.headline]) for row in rows]


def _share_won(row: Row) -> float:
    strongest = row.strongest(row.headline)
    return row.against[strongest][row.headline].wins if strongest else 0.5


def _place(row: Row, values: list[float]) -> float:
    low, high = min(values), max(values)
    place = (row.systems[MODEL][row.headline].value - low) / (high - low) if high > low else 0.5
    return 1 - place if row.headline in row.lower_is_better else place
