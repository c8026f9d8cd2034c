"""`anyxform data preview [key=value …]`: a page of samples and directions as training draws them."""

from collections.abc import Sequence
from pathlib import Path

from anyxform.cli.build import NONE, build_modalities, check_data, dataset_weights, prepared, typed
from anyxform.cli.conf import compose
from anyxform.cli.own import clear
from anyxform.data import near_shards
from anyxform.dataset import open_datasets
from anyxform.demo.media import Gallery
from anyxform.directions import Directions
from anyxform.order import Order
from anyxform.preview import draw, page


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    config = typed(compose("preview", prepared(arguments)), compose("preview", []))
    check_data(config["data"], ("root", "datasets", "directions"))
    if config["samples"] < 1 or config["draws"] < config["samples"]:
        raise ValueError(f"samples={config['samples']} must be 1 or more, and draws={config['draws']} no fewer")
    data, out = config["data"], Path(config["out"])
    modalities = build_modalities(config["modality"], NONE)
    datasets = open_datasets(data["datasets"], modalities, root=data["root"], split=config["split"])
    sizes = {name: len(dataset) for name, dataset in datasets.items()}
    order = Order(sizes, dataset_weights(data["datasets"], datasets), config["seed"], near_shards(datasets))
    directions = Directions(data["directions"], data.get("hold_out") or ())
    drawn = list(draw(datasets, modalities, directions, order, config["draws"]))
    clear(out, ["media", "index.html"], "preview")
    gallery = Gallery(out / "media")
    title = f"{', '.join(datasets)}: {config['split']}"
    html = page(datasets, modalities, drawn, config["samples"], gallery, title)
    (out / "index.html").write_text(html, encoding="utf-8", errors="backslashreplace")
    print(out / "index.html")
    return 0
