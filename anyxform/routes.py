"""The evaluation table of a checkpoint: how well it does directly and by way of another field, as far as was judged.

    evaluation.json  {"format": 1, "rows": [{"direction": "text:fr>text:ru", "n": 94, "metric": "chrf",
                      "lower_is_better": false, "systems": {"model": 12.0, "via text:en": 15.5}}]}

`anyxform eval … via=FIELD` measures both on the same samples; `anyxform card --report` keeps what it found beside the
weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyxform.checkpoint import read_json
from anyxform.field import Direction, Field, matches

FILE, FORMAT = "evaluation.json", 1
DIRECT, VIA = "model", "via "
Row = Mapping[str, Any]


def table(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept of reports of `anyxform eval`: each direction's first metric, directly and by way of fields."""
    rows = []
    for row in (row for report in reports for row in report["directions"]):
        metric = row["headline"]
        systems = {
            name: round(values[metric]["value"], 6)
            for name, values in row["systems"].items()
            if metric in values and (name == DIRECT or name.startswith(VIA))
        }
        lower = metric in row["lower_is_better"]
        rows.append(
            {"direction": row["direction"], "n": row["n"], "metric": metric, "lower_is_better": lower}
            | {"systems": systems}
        )
    return {"format": FORMAT, "rows": rows}


def read_table(folder: Path) -> list[Row]:
    """The rows of a checkpoint's table; ValueError: it has none, or a broken one."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"via=auto needs {path}, which is not there: judge the checkpoint with anyxform eval via=FIELD, then "
            "anyxform card --report, or say via=FIELD"
        )
    saved = read_json(path)
    try:
        for row in saved["rows"]:
            Direction.parse(row["direction"]), row["n"] + row["systems"][DIRECT], row["metric"], row["lower_is_better"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path} is no table of anyxform card --report: write it again") from None
    return list(saved["rows"])


def best_route(rows: Sequence[Row], direction: Direction, trained: Iterable[Direction] = ()) -> Field | None:
    """The field by way of which the model does better than directly; None: it does not.

    Rows count from whatever variants of the sources, each by its samples. Where none does, None if the direction was
    trained, and a ValueError if it was not.
    """
    pattern = "+".join(source.modality for source in direction.sources) + f">{direction.target}"
    fitting = [row for row in rows if matches(Direction.parse(row["direction"]), pattern)]
    if not fitting:
        if any(matches(it, pattern) for it in trained):
            return None
        raise ValueError(
            f"via=auto: {pattern} was neither trained nor judged: say via=FIELD, or judge it with anyxform eval "
            f"'directions={pattern}' via=FIELD, then anyxform card --report"
        )
    gains: dict[str, list[tuple[float, int]]] = {}
    for row in (row for row in fitting if row["metric"] == fitting[0]["metric"]):
        sign = -1 if row["lower_is_better"] else 1
        for name, value in row["systems"].items():
            if name.startswith(VIA):
                gain = sign * (value - row["systems"][DIRECT])
                gains.setdefault(name.removeprefix(VIA), []).append((gain, row["n"]))
    means = {name: sum(gain * n for gain, n in some) / sum(n for _, n in some) for name, some in gains.items()}
    best = max(means, key=lambda name: means[name], default=None)
    return None if best is None or means[best] <= 0 else Field.parse(best)
