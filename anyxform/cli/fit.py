"""`anyxform plan --fit RUN RUN RUN …`: which size of model is right for a time of training, by runs on this machine."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from anyxform.cli.arguments import short

if TYPE_CHECKING:
    from anyxform.plan import Measured
    from anyxform.scaling import Law


def fit(options: Any) -> int:
    """Print the law and its advice, write plan.json and scaling.png."""
    from anyxform.checkpoint import write_json
    from anyxform.plan import advise, measured
    from anyxform.scaling import fit_law
    from anyxform.scaling_picture import draw_scaling

    if options.overrides:
        raise ValueError(f"--fit takes runs alone, not {options.overrides[0]!r}")
    if not 0 <= options.skip < 1:
        raise ValueError(f"--skip {options.skip:g} is not possible: give a share from 0 to below 1")
    if min(options.hours) <= 0:
        raise ValueError(f"--hours {min(options.hours):g} is not possible: give hours above 0")
    runs = [measured(path, options.skip) for path in options.fit]
    law = fit_law([point for run in runs for point in run.points])
    options.out.mkdir(parents=True, exist_ok=True)
    advice = [advise(law, runs, hours) for hours in sorted(options.hours)]
    write_json(options.out / "plan.json", {"law": asdict(law), "runs": [asdict(it) for it in runs], "advice": advice})
    _tell(law, runs, advice)
    try:
        draw_scaling(law, {run.name: run.points for run in runs}, options.out / "scaling.png")
    except ValueError as error:  # everything else is measured and saved
        Console(stderr=True).print(str(error), markup=False)
    print(options.out)
    return 0


def _tell(law: "Law", runs: Sequence["Measured"], advice: Sequence[dict[str, Any]]) -> None:
    console = Console()
    console.print(
        f"loss = {law.floor:.3f} + {law.a:.3g} / parameters^{law.alpha:.3f} + {law.b:.3g} / tokens^{law.beta:.3f}, "
        f"{law.error:.1%} beside the {sum(len(run.points) for run in runs)} losses measured",
        soft_wrap=True,
        highlight=False,
    )
    table = Table("hours", "best size", "on tokens", "loss", *(f"{run.name} ({short(run.parameters)})" for run in runs))
    for line in advice:
        cells = [f"{value:.3f}{' ◀' * (name == line['of_the_runs'])}" for name, value in line["expected"].items()]
        best = [short(line[name]) for name in ("best_parameters", "tokens")]
        table.add_row(f"{line['hours']:g}", *best, f"{line['loss']:.3f}", *cells)
    Console(width=None if console.is_terminal else 140).print(table)
