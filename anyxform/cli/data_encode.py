"""`anyxform data encode [key=value …]`: copy shards, with the codes of targets beside the samples."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyxform.cli.arguments import printable
from anyxform.cli.bar import progress_bar
from anyxform.cli.build import build_modalities, check_data, held, listed, modality_classes, prepared, typed
from anyxform.cli.conf import compose
from anyxform.cli.own import clear
from anyxform.cli.processes import in_processes
from anyxform.field import did_you_mean

if TYPE_CHECKING:
    from anyxform.build.write import Part
    from anyxform.modality import Modality


@dataclass(frozen=True)
class _Job:
    """A shard to read, with its fields in JSON members; what is to be written, and where."""

    shard: str
    fields: Mapping[str, str]
    part: "Part"
    folder: Path


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns 1 where a sample was left out."""
    from anyxform.build.write import begin, left_out

    config = typed(compose("encode", prepared(arguments)), compose("encode", []))
    check_data(config["data"], ("root", "datasets"))
    targets = listed(config["targets"])
    used = targets or _held(config)
    modalities = _chosen(build_modalities(config["modality"], config["tokenizers"], used=used), targets)
    out = Path(str(config["out"]))
    skipped: list[str] = []
    jobs = list(_jobs(config, modalities, out, skipped))
    missing: list[_Job] = []
    for folder in sorted({job.folder for job in jobs}):
        own = {job.part.name: job for job in jobs if job.folder == folder}
        missing += [own[part.name] for part in begin(folder, [job.part for job in own.values()], config["again"])]
    _copy_tokenizers(Path(str(config["tokenizers"])), out / "tokenizers")
    with progress_bar() as bar:
        total = sum(len(job.part.entries) for job in jobs)
        task = bar.add_task("samples", total=total, completed=total - sum(len(job.part.entries) for job in missing))
        for count in in_processes(partial(_encode, modalities=modalities), missing, config["workers"]):
            bar.advance(task, count)
    for folder in {job.folder for job in jobs}:
        skipped += left_out(folder)
    for line in skipped:
        print(f"left out: {printable(line)}", file=sys.stderr)
    print(f"{out}: {total:,} samples in {len(jobs)} shards, with codes of {', '.join(modalities)}")
    print(f"to train on them: data.root={out}")
    return int(bool(skipped))


def _held(config: Mapping[str, Any]) -> set[str]:
    """The modalities of which these data have fields."""
    from anyxform.dataset import open_datasets

    classes, data, found = modality_classes(config["modality"]), config["data"], set[str]()
    for split in listed(config["splits"]):
        with suppress(ValueError):  # what cannot be read is said where it is copied
            found |= held(open_datasets(data["datasets"], classes, root=data["root"], split=split))
    return found or set(classes)


def _copy_tokenizers(source: Path, place: Path) -> None:
    """Those of the codes and of the texts beside them, in place of others that an earlier call has copied."""
    if source.is_dir() and _files(source) != _files(place):
        clear(place.parent, [place.name], "encode")
        shutil.copytree(source, place)


def _files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _chosen(modalities: "Mapping[str, Modality]", names: Sequence[str]) -> "dict[str, Modality]":
    """Those that are named, else those whose tokenizer is a network: the codes of others cost next to nothing."""
    for name in names:
        if name not in modalities:
            raise ValueError(f"targets: there is no modality {name!r}: {did_you_mean(name, list(modalities))}")
    chosen = {name: it for name, it in modalities.items() if (name in names if names else it.state())}
    if not chosen:
        raise ValueError("no modality has a tokenizer that takes time: name those to encode, such as targets=[text]")
    return chosen


def _jobs(
    config: Mapping[str, Any], modalities: "Mapping[str, Modality]", out: Path, skipped: list[str]
) -> Iterator[_Job]:
    """Every shard once, to be written to the same place below `out` as it has below the data's root."""
    from anyxform.build.write import Part
    from anyxform.dataset import check_datasets, shards_of
    from anyxform.encode import Encoded

    data, seen = config["data"], set[str]()
    root = str(data["root"])
    if Path(root).resolve() == out.resolve():
        raise ValueError(f"out={out} is where the shards are: give another folder")
    check_datasets(data["datasets"])
    for dataset in data["datasets"].values():
        fields = dataset.get("fields") or {}
        for shard in (it for split in listed(config["splits"]) for it in shards_of(dataset, root, split)):
            if shard not in seen:
                seen.add(shard)
                place = _below(root, shard)
                entries = tuple(Encoded(shard, modalities, fields).entries(skipped))
                yield _Job(shard, fields, Part(place.name, entries), out / place.parent)
    if not seen:
        raise ValueError(f"no dataset has shards of the splits {listed(config['splits'])} under {root!r}")


def _below(root: str, shard: str) -> Path:
    """Where a shard is, seen from the data's root, be they paths or URLs."""
    try:
        return Path(shard).relative_to(root)
    except ValueError:
        raise ValueError(f"{shard} is not below data.root={root}: encode data that are all in one place") from None


def _encode(job: _Job, modalities: "Mapping[str, Modality]") -> int:
    """How many samples the shard has that was written."""
    import torch

    from anyxform.build.write import write
    from anyxform.encode import Encoded

    torch.set_num_threads(1)  # shards are spread over processes
    return write(job.part, Encoded(job.shard, modalities, job.fields), job.folder)
