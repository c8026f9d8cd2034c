"""`anyxform plan`: what a training would take, and, with `--fit`, which size of model is right, by runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anyxform.cli.arguments import Parser, short

RULE_OF_THUMB = 20
"""Tokens for each parameter, where no law has been fitted (Chinchilla's, for text)."""


def main(arguments: list[str]) -> int:
    """Print and write what was asked for; returns the exit code."""
    parser = Parser(
        prog="anyxform plan",
        description="Say what a training would take: memory, time and money of the config that `anyxform train` would "
        "get (model=small data=mine …). With --fit: fit the held-out loss of runs to a power law of size and data.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config, as for anyxform train")
    parser.add_argument("--config-dir", help="a folder of your own configs")
    parser.add_argument("--gpu", default="here", help="l4, a100, h100, …; here: this machine, measured (default)")
    parser.add_argument("--gpus", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of their operations reached (default: 0.4)")
    parser.add_argument("--tokens", type=float, help="to train on (default: by --law, else 20 for each parameter)")
    parser.add_argument("--price", type=float, help="of an hour of one of them")
    parser.add_argument("--law", type=Path, help="plan.json of an earlier --fit, to advise on tokens")
    parser.add_argument("--sizes", action="store_true", help="a line for each size of model instead")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--fit", nargs="+", type=Path, metavar="RUN", help="runs of three sizes or more")
    parser.add_argument("--hours", type=float, nargs="+", default=[1, 3, 10, 30, 100], help="of training, with --fit")
    parser.add_argument("--skip", type=float, default=0.1, help="share of each run left out at its start, with --fit")
    parser.add_argument("-o", "--out", type=Path, default=Path("plan"), help="a folder, with --fit (default: plan)")
    options = parser.parse_intermixed_args(arguments)
    if options.fit:
        from anyxform.cli.fit import fit

        return fit(options)
    return _budget(options)


def _budget(options: Any) -> int:
    from anyxform.budget import Setting, plan
    from anyxform.cli.build import check_data, check_keys, prepared, typed
    from anyxform.cli.conf import compose
    from anyxform.hardware import HERE, device, multiplies_bf16
    from anyxform.model import PRESETS
    from anyxform.pipeline import pick_device

    for name, value in (("--gpus", options.gpus), ("--mfu", options.mfu), ("--tokens", options.tokens or 1)):
        if not value > 0:
            raise ValueError(f"{name} {value:g} is not possible: give more than 0")
    words = prepared([*options.overrides, *(["--config-dir", options.config_dir] if options.config_dir else [])])
    config = typed(compose("train", words), compose("train", []))
    check_data(config["data"])
    check_keys(config)
    if options.sizes and config["model"].get("init_from"):
        raise ValueError("--sizes and model.init_from= do not go together: the weights have one size")
    train = config["train"]
    if train["bf16"] is None:
        train["bf16"] = options.gpu != HERE or multiplies_bf16(pick_device(train["device"]))
    if options.gpus > train["rows_per_step"]:
        raise ValueError(
            f"--gpus {options.gpus} is not possible with train.rows_per_step={train['rows_per_step']}: "
            "each process has a row of a step at least"
        )
    setting = Setting(
        device(options.gpu, train["bf16"]),
        options.gpus,
        sharded=config["distributed"]["strategy"] == "fsdp" and options.gpus > 1,
        mfu=options.mfu,
        rows_per_step=train["rows_per_step"],
        average=train["ema"] is not None,
        bf16=train["bf16"],
    )
    law = _law(options.law) if options.law else None
    sizes = PRESETS if options.sizes else {"": {}}
    plans = {}
    for name, cost in _costs(config, sizes, words).items():
        advised = law.best_tokens(cost.parameters) if law else RULE_OF_THUMB * cost.parameters
        plans[name] = {**plan(cost, setting, options.tokens or advised, options.price), "tokens_advised": advised}
    if options.json:
        print(json.dumps(plans if options.sizes else plans[""], indent=1))
    elif options.sizes:
        _tell_sizes(plans, setting)
    else:
        _tell_one(plans[""], setting, "the law" if law else f"{RULE_OF_THUMB} for each parameter")
    return 0


def _law(path: Path) -> Any:
    """The law in a plan.json."""
    from anyxform.scaling import Law

    try:
        return Law(**json.loads(path.read_text())["law"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--law {path} is no law ({error}): give the plan.json of anyxform plan --fit") from None


def _costs(config: dict[str, Any], sizes: dict[str, dict[str, int]], words: Sequence[str]) -> dict[str, Any]:
    """The cost of the config's model, or of each of these sizes, on the first rows of its data."""
    from itertools import islice

    from anyxform.cli.build import Data, build_modalities, modality_classes
    from anyxform.cli.origin import arguments, origin_of, sized
    from anyxform.estimate import estimate, shapes_only
    from anyxform.model import Transformer

    train = config["train"]
    origin = origin_of(config["model"])
    own = arguments(sized(config["model"], origin, words))
    classes = modality_classes(config["modality"])
    data = Data.open({**config["data"], "num_workers": 0}, classes)
    used = data.used(list(classes)) or classes
    modalities = build_modalities(config["modality"], config["tokenizers"], origin, used)
    conditions = data.conditions(modalities)
    with shapes_only():
        model = Transformer(modalities=modalities, conditions=conditions, **own)
    rows = data.rows("train", model, modalities, seed=config["seed"], pad=False)
    batches = [batch for batch, _ in islice(rows.from_position(), 2 if len(sizes) == 1 else 1)]
    return {
        name: estimate(
            own | size,
            modalities,
            conditions,
            batches,
            optimizer=config["optim"]["name"],
            bf16=train["bf16"],
            recompute=train["checkpoint_activations"],
        )
        for name, size in sizes.items()
    }


def _tell_one(plan: dict[str, Any], setting: Any, advice: str) -> None:
    table = Table("what", "how much", box=None, show_header=False)
    table.add_row("parameters", short(plan["parameters"]))
    table.add_row("operations for each token trained on", short(plan["operations_per_token"]))
    for name, size in plan["memory"].items():
        table.add_row(f"memory of a process: {name}", _bytes(size))
    fits = "fits" if plan["memory_needed"] < plan["memory_there"] else "does not fit"
    needed, there = _bytes(plan["memory_needed"]), _bytes(plan["memory_there"])
    table.add_row("memory of a process", f"{needed} of {there}: {fits}")
    reached = f"{setting.mfu:.0%} of {setting.device.operations / 1e12:.3g} Tflop/s × {setting.devices}"
    table.add_row("tokens a second", f"{plan['tokens_per_second']:,.0f} ({reached})")
    table.add_row("tokens advised", f"{short(plan['tokens_advised'])} ({advice})")
    table.add_row(f"time for {short(plan['tokens'])} tokens", _time(plan["days"]))
    if plan["price"] is not None:
        table.add_row(f"price for {short(plan['tokens'])} tokens", f"{plan['price']:,.2f}")
        table.add_row("price of a million generated tokens", f"{plan['price_per_million_generated']:.4f}")
    table.add_row(
        "tokens generated a second, by one", f"{plan['generated_tokens_per_second']:,.0f} (64 answers together)"
    )
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table)
    if fits != "fits":
        console.print(
            "take train.checkpoint_activations=true, distributed=fsdp with more of them, or a smaller "
            "data.tokens_per_row",
            soft_wrap=True,
        )


def _tell_sizes(plans: dict[str, dict[str, Any]], setting: Any) -> None:
    table = Table("size", "parameters", "flop/token", "memory", "fits", "tokens/s", "tokens advised", "days", "price")
    for name, plan in plans.items():
        fits = plan["memory_needed"] < plan["memory_there"]
        price = "–" if plan["price"] is None else f"{plan['price']:,.0f}"
        table.add_row(
            name, short(plan["parameters"]), short(plan["operations_per_token"]), _bytes(plan["memory_needed"]),
            "yes" if fits else "no", f"{plan['tokens_per_second']:,.0f}", short(plan["tokens"]),
            f"{plan['days']:.3g}", price,
        )  # fmt: skip
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table)


def _bytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


def _time(days: float) -> str:
    return f"{days:.1f} days" if days >= 2 else f"{24 * days:.2g} hours"
