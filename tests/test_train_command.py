"""`anyxform train` as users script it: a killed run goes on bit for bit, signals save, and mistakes are one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from anyxform.cli import main
from anyxform.pipeline import load
from tests.tiny import Tiny, samples, write_shard

STEPS = 24
OPTIONS = (f"train.steps={STEPS}", "train.checkpoint_every=3", "model.dropout=0.1")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(run_dir: Path) -> list[tuple[int, float, float, dict[str, float]]]:
    return [(it["step"], it["loss"], it["grad_norm"], it["directions"]) for it in metrics(run_dir)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The raw weights, their average and the optimizer's state at the end."""
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
    names = ("weights", "model", "optimizer")
    return {f"{name}/{key}": it for name in names for key, it in load_file(folder / f"{name}.safetensors").items()}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads; child processes have one as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Tiny, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(tiny.train(folder, *OPTIONS)) == 0
    return folder


def interrupted(
    arguments: list[str], run_dir: Path, *, lines: int, number: int, group: bool = False
) -> tuple[int, str]:
    """The exit code and the error output of a process that gets a signal once it has told of so many steps."""
    command = [sys.executable, "-m", "anyxform", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(metrics(run_dir)) < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, number)
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


# Going on


def test_a_killed_run_goes_on_bit_for_bit_whatever_the_number_of_workers(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path
) -> None:
    arguments = tiny.train(tmp_path, *OPTIONS, "resume=auto")
    code, said = interrupted([*arguments, "data.num_workers=1"], tmp_path, lines=5, number=signal.SIGKILL)
    assert code == -signal.SIGKILL and 5 <= len(metrics(tmp_path)) < STEPS, said
    assert main(arguments) == 0
    assert losses(tmp_path) == losses(uninterrupted) and len(losses(tmp_path)) == STEPS
    expected = weights(uninterrupted)
    assert all(torch.equal(tensor, expected.pop(name)) for name, tensor in weights(tmp_path).items()) and not expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_first_and_say_how_to_go_on(
    number: signal.Signals, tiny: Tiny, uninterrupted: Path, tmp_path: Path
) -> None:
    """The process that reads the data gets them as well, as from Ctrl-C in a terminal or from SLURM."""
    arguments = tiny.train(tmp_path, f"train.steps={STEPS}", "model.dropout=0.1", "data.num_workers=1")
    code, said = interrupted(arguments, tmp_path, lines=2, number=number, group=True)
    assert code == 128 + number and "Traceback" not in said, said
    steps = len(metrics(tmp_path))
    assert f"stopped and saved after step {steps}; go on with: anyxform train --config-dir" in said
    assert f"run_dir={tmp_path} resume=auto" in said
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == f"step-{steps:08d}"
    assert losses(tmp_path) == losses(uninterrupted)[:steps] and steps < STEPS


def test_a_finished_run_has_nothing_to_do(tiny: Tiny, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = metrics(run_dir)
    assert main(tiny.train(run_dir, "resume=auto")) == 0
    assert "has been trained for 6 steps: for more, give a larger train.steps" in capsys.readouterr().err
    assert metrics(run_dir) == before


# What a run leaves behind


def test_samples_are_written_of_the_same_probes(run_dir: Path) -> None:
    folders = sorted((run_dir / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-00000003", "step-00000006"]
    first, second = ([json.loads(line) for line in (it / "index.jsonl").read_text().splitlines()] for it in folders)
    assert first == second and {line["direction"] for line in first} >= {"image>text:en", "text:fr>audio"}
    for line in first:
        for role in ("source0", "reference", "answer"):
            assert (folders[0] / line[role]).exists()
            assert role == "answer" or (folders[0] / line[role]).read_bytes() == (folders[1] / line[role]).read_bytes()


def test_tensorboard_shows_losses_and_samples(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert [it.step for it in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("train/loss")[3].value == pytest.approx(metrics(run_dir)[3]["loss"])
    assert {"train/image>text:en", "validation/val_loss"} <= set(tags["scalars"])
    answers = [tag for tag in tags["images"] if tag.endswith("text:en>image/answer")]
    assert [it.step for it in events.Images(answers[0])] == [3, 6]
    sources = [tag for tag in tags["images"] if tag.endswith("image>text:en/source0")]
    assert [it.step for it in events.Images(sources[0])] == [3], "what does not change is shown once"
    assert any(tag.endswith(">audio/answer") for tag in tags["audio"])


def test_what_is_held_out_is_never_trained(run_dir: Path) -> None:
    seen = {direction for line in metrics(run_dir) for direction in line["directions"]}
    assert {"audio>text:en", "text:en>audio", "text:fr>text:en"} <= seen and "audio>text:fr" not in seen
    config = json.loads((run_dir / "checkpoints" / "step-00000006" / "config.json").read_text())
    assert set(config["directions"]) == seen
    assert config["facts"]["steps"] == 6 and config["facts"]["samples"] == {"shapes": 48}
    assert "val_loss" in metrics(run_dir)[-1]


def test_validation_can_be_on_another_split(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("train.steps=2", "train.val_every=2")
    for name, split in {"new": "val", "known": "instance"}.items():
        assert main(tiny.train(tmp_path / name, *options, f"+data.val_split={split}")) == 0
    new, known = (metrics(tmp_path / name)[-1] for name in ("new", "known"))
    assert new["loss"] == known["loss"] and new["val_loss"] != known["val_loss"]
    capsys.readouterr()
    for split in ("train", "elsewhere"):
        assert main(tiny.train(tmp_path / split, *options, f"+data.val_split={split}")) == 2
        assert f"data.val_split={split} is not possible" in capsys.readouterr().err.splitlines()[-1]


# Broken data


def spoilt(tiny: Tiny, folder: Path, every: int, **members: bytes) -> str:
    """The override for a copy of the data in which members of every so manyth training sample are replaced."""
    root = folder / "data"
    shutil.copytree(tiny.root, root)
    contents = [it | members if number % every == 0 else it for number, it in enumerate(samples("train", 4))]
    write_shard(root / "shapes" / "train-000000.tar", contents)
    return f"data.root={root}"


def test_a_run_of_so_many_minutes_ends_with_them_and_its_rate_has_fallen_by_then(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr("anyxform.train.time", SimpleNamespace(perf_counter=lambda: 3.0 * next(ticks)))
    arguments = tiny.train(tmp_path / "run", "train.steps=100000", "optim.final=0", "optim.warmup=1")
    assert main([*arguments, "train.minutes=1.2"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "steps 0 to 100000 or what fits into 1.2 minutes" in said and "step 12/12" in said
    lines = metrics(tmp_path / "run")
    assert lines[-1]["step"] == 12 and lines[-1]["seconds"] == 72
    assert lines[-1]["lr"] < 0.1 * max(line["lr"] for line in lines)
    assert main([*arguments, "train.minutes=1.2", "resume=auto"]) == 0
    assert "has been trained for 12 steps: for more, give a larger train.minutes" in capsys.readouterr().err


def test_datasets_without_shards_are_named(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = 'data.datasets.more={shards: "more/{split}-*.tar", weight: 2}'
    assert main(tiny.train(tmp_path / "run", "train.steps=1", f"+{more}")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"without more: no shards to train on in {tiny.root}" in said


def test_patterns_that_nothing_fits_are_named(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = 'data.hold_out=["audio>text:fr","image>text:de"]'
    aligned = "+data.aligned=[image>text:en,image>text:xx]"
    assert main(tiny.train(tmp_path / "run", "train.steps=1", "~modality@modality.audio", held, aligned)) == 0
    said = " ".join(capsys.readouterr().err.split())
    idle = "audio>text:fr, image>text:de, audio>text, text>audio, image>text:xx"
    assert f"no training sample fits {idle} of data.directions" in said


def test_single_broken_samples_are_left_out_counted_and_named(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = spoilt(tiny, tmp_path, 24, png=b"no picture", json=b'{"text": {"en": "cut o')
    assert main(tiny.train(tmp_path / "run", root, "data.max_broken=0.5")) == 0
    said = capsys.readouterr().err
    assert "left out " in said and "its .json is broken" in said and "red-square-0" in said


def test_too_many_broken_samples_stop_the_run(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = spoilt(tiny, tmp_path, 4, png=b"no picture")
    assert main(tiny.train(tmp_path / "run", root, "data.pool=256")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "samples are broken, more than data.max_broken=0.01: " in said and "train-000000.tar: " in said
    assert "(image>text:en): the picture is none of PNG" in said


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume=auto", "seed=4", "train.steps=9"], "was trained with seed=3, not 4: resume with that, or start anew"),
        (["resume=auto", "data.pool=8", "train.steps=9"], "was trained with data.pool=16, not 8"),
        (["resume=auto", "model.dim=16", "train.steps=9"], "was trained with model.dim=32, not 16: resume with that"),
        (["resume=auto", "~modality@modality.audio", "train.steps=9"], "was trained with the conditions"),
        ([], "holds a run already: go on with it by resume=auto, or give another run_dir"),
        (["resume=nowhere"], "resume=nowhere is no whole checkpoint: give auto, or a folder such as"),
    ],
)
def test_what_does_not_fit_a_run_that_is_there(
    overrides: list[str], message: str, tiny: Tiny, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert main(tiny.train(run_dir, *overrides)) == 2
    check_line(capsys, message)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before, "the run is left as it was"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("data/tiny.yaml", "holdout: ['audio>text:en']", "'data.holdout': did you mean 'data.hold_out'?"),
        ("experiment/tiny.yaml", "train: {val_evry: 3}", "'train.val_evry': did you mean 'train.val_every'?"),
        ("experiment/tiny.yaml", "trian: {steps: 3}", "'trian': did you mean 'train'?"),
        ("data/tiny.yaml", "home: /data", ""),
    ],
)
def test_a_misspelt_key_in_a_file_is_named(
    file: str, line: str, message: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the user's own is not, as it may be what others are made of."""
    shutil.copytree(tiny.conf, tmp_path / "conf")
    text = (tmp_path / "conf" / file).read_text()
    kept = [it for it in text.splitlines() if not line.startswith("train:") or not it.startswith("train:")]
    (tmp_path / "conf" / file).write_text("\n".join([*kept, line]))
    arguments = tiny.train(tmp_path / "run")
    arguments = [str(tmp_path / "conf") if it == str(tiny.conf) else it for it in [*arguments, "train.steps=1"]]
    assert main(arguments) == (2 if message else 0)
    if message:
        check_line(capsys, f"no config key is called {message}")


def test_what_the_data_do_not_have_needs_no_tokenizer(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audio is left out, with a word; where a direction wants it, it is missing."""
    tokenizers = tmp_path / "tokenizers"
    for name in ("text", "image"):
        shutil.copytree(tiny.root / "tokenizers" / name, tokenizers / name)
    without = ["data.hold_out=[audio>*,*>audio]", f"tokenizers={tokenizers}", "train.steps=1"]
    assert main(tiny.train(tmp_path / "run", *without)) == 0
    assert "without audio: in no trained direction, and there was no tokenizer" in capsys.readouterr().err
    assert set(load(tmp_path / "run").modalities) == {"text", "image"}
    assert main(tiny.train(tmp_path / "other", f"tokenizers={tokenizers}")) == 2
    assert "there is no tokenizer for audio" in capsys.readouterr().err
    shutil.copytree(tiny.root / "tokenizers" / "audio", tokenizers / "audio")  # it stays left out where a run goes on
    assert main(tiny.train(tmp_path / "run", *without[:-1], "train.steps=2", "resume=auto")) == 0
    assert set(load(tmp_path / "run").modalities) == {"text", "image"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stpes=9"], "no config key is called 'train.stpes': did you mean 'train.steps'?"),
        (["train.float8=true"], "train.float8=true needs "),
        (["train.fp16=true"], "there is no train.fp16: fp16 is slow on CPUs, and wants its losses scaled everywhere: "),
        (["+train.fp16=true"], "everywhere: use train.bf16=true"),
        (["experiment=tinny"], "there is no config 'experiment/tinny': did you mean 'tiny'?"),
        (["model.depth=null"], "model.depth=null is not possible: give a number"),
        (["train.steps=many"], "train.steps=many is not possible: give a number"),
        (["train.steps=2.5"], "train.steps=2.5 is not possible: give a whole number"),
        (["train.steps=0"], "train.steps=0 is not possible: give 1 or more"),
        (["train.minutes=-1"], "train.minutes=-1.0 is not possible: give 0 or more"),
        (["train.minutes=nan"], "train.minutes=nan is not possible: give 0 or more"),
        (["train.minutes=inf"], "train.minutes=inf is not possible: give 0 or more"),
        (["train.align_weight=-1"], "train.align_weight=-1.0 is not possible: give 0 or more"),
        (["data.num_workers=-1"], "data.num_workers=-1 is not possible: give 0 or more"),
        (["train.bf16=maybe"], "train.bf16=maybe is not possible: give true, false, or null (on GPUs)"),
        (["train.compile=2"], "train.compile=2 is not possible: give true or false"),
        (["seed=-1"], "seed=-1 is not possible: give 0 or more"),
        (["train.debug=overfti"], "train.debug=overfti is unknown: use overfit"),
        (["train.device=gpu"], "the device 'gpu' cannot be used"),
        (["data.root=/nowhere"], "there is no folder '/nowhere' of shards: give data.root"),
        (["tokenizers=https://far.example/it"], "tokenizer for text cannot be read from https://far.example/it/text: "),
        (["data.datasets={x: {shards: a.tar}}"], "data.datasets is given entries that it has not: add each, as +data."),
        (["train.val_every=null"], "train.val_every=null is not possible: give a number"),
        (["train.clip=null"], "train.clip=null is not possible: give a number"),
        (["train.loss_weights={adio: 0.5}"], "train.loss_weights names 'adio': did you mean 'audio'?"),
        (["~data.num_workers"], "the config of the data has no num_workers"),
        (["optim.schedule=slow"], "schedule='slow' is unknown"),
        (["tokenizers=/nowhere"], "there is no tokenizer for text in /nowhere/text: run anyxform tokenizer modality="),
        (["modality.image.width=32"], "was fitted without {'width': 32}"),
        (["modality.image.name=text"], "modality.image has name=text: the two must be the same"),
        (["data.datasets.shapes.shards=none-*.tar"], "no dataset has shards of the split 'train' under"),
        (["data.hold_out=[*>*]"], "no sample has a direction that fits data.directions="),
        (["data.hold_out=[image]"], "'image' is not a pattern of directions"),
        (["data.tokens_per_row=4"], "are more than data.tokens_per_row=4"),
    ],
)
def test_a_mistake_is_one_line(
    overrides: list[str], message: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.train(tmp_path / "run", *overrides)) == 2
    check_line(capsys, message)


def check_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    said = capsys.readouterr()
    *_, last = said.err.splitlines()
    assert last.startswith("anyxform: error: ") and message in last and not said.out
    assert "Traceback" not in said.err


def test_how_a_modality_is_decoded_is_a_choice_that_its_checkpoint_keeps(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("modality.image.decoding=autoregressive", "data.other_decoding=0")
    assert main(tiny.train(tmp_path / "run", *overrides)) == 0
    ax = load(str(tmp_path / "run"), device="cpu")
    assert (ax.modalities["image"].decoding, ax.modalities["audio"].decoding) == ("autoregressive", "masked")
    drawn = [ax("a red disc", to="image", **options).tobytes() for options in ({}, {"decoding": "autoregressive"})]
    assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match="has learnt image in the autoregressive way alone"):
        ax("a red disc", to="image", decoding="masked")
    capsys.readouterr()
    assert main(tiny.train(tmp_path / "wrong", "modality.image.decoding=left")) == 2
    check_line(capsys, "image decoding='left': known: autoregressive, masked")
    assert main(tiny.train(tmp_path / "wrong", "modality.image.decoding=null")) == 2
    check_line(capsys, "image decoding=None: known: autoregressive, masked")
    assert not (tmp_path / "wrong").exists()


def test_a_mistake_in_how_examples_are_made_leaves_no_folder(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.train(tmp_path / "run", "data.other_decoding=much")) == 2
    check_line(capsys, "data.other_decoding=much is no share: give 0 to 1, or one for each modality")
    assert main(tiny.train(tmp_path / "run", "train.align_weight=0.3")) == 2
    check_line(capsys, "train.align_weight=0.3 is of nothing: name directions in data.aligned")
    assert not (tmp_path / "run").exists()


def test_resuming_needs_to_know_the_run(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tiny.train(None, "resume=auto")) == 2
    check_line(capsys, "resume=auto needs to know which run: give run_dir=")


def test_a_broken_checkpoint_is_passed_over_and_kept(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(uninterrupted, copy)
    *_, before, newest = sorted((copy / "checkpoints").glob("step-*"))
    (newest / "weights.safetensors").write_bytes(b"cut off")
    assert main(tiny.train(copy, *OPTIONS, "resume=auto", "train.keep=1")) == 0
    assert f"resuming {before}" in capsys.readouterr().err
    names = {folder.name for folder in (copy / "checkpoints").iterdir()}
    assert names == {newest.name, f"broken-{newest.name}", "latest"}
    assert losses(copy) == losses(uninterrupted)


def test_an_earlier_checkpoint_goes_on_in_another_folder(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = uninterrupted / "checkpoints" / f"step-{STEPS - 3:08d}"
    assert main(tiny.train(uninterrupted, *OPTIONS, f"resume={earlier}")) == 2
    check_line(capsys, f"holds later checkpoints than step-{STEPS - 3:08d}: give another run_dir")
    assert main(tiny.train(tmp_path / "2024", *OPTIONS, f"resume={earlier}")) == 0
    assert losses(tmp_path / "2024") == losses(uninterrupted)[-3:]


def test_what_only_training_heeds_may_change(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    assert main(tiny.train(copy, "resume=auto", "modality.image.augment=0.5", "train.steps=7")) == 0
    config = json.loads((copy / "checkpoints" / "step-00000007" / "config.json").read_text())
    assert config["modalities"]["image"]["augment"] == 0.5


@pytest.mark.parametrize("decoding", ["masked", "autoregressive"])
def test_a_run_goes_on_that_is_older_than_an_argument(decoding: str, tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    """With the argument's default, which does what was done without it, and with nothing else."""
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    for folder in (copy / "checkpoints").glob("step-*"):
        config = json.loads((folder / "config.json").read_text())
        del config["modalities"]["image"]["decoding"], config["model"]["target_positions"]
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "manifest.json").unlink()  # it has the digest of what was there before
    arguments = tiny.train(copy, "resume=auto", f"modality.image.decoding={decoding}", "train.steps=7")
    assert main(arguments) == (0 if decoding == "masked" else 2)


def test_a_run_does_not_go_on_with_other_positions(
    tiny: Tiny, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    assert main(tiny.train(copy, "resume=auto", "model.target_positions=along", "train.steps=7")) == 2
    assert "was trained with model.target_positions='after', not 'along'" in " ".join(capsys.readouterr().err.split())
    assert main(tiny.train(copy, "resume=auto", "+modality.text.pace=3", "train.steps=7")) == 2
    assert "was trained with another text" in " ".join(capsys.readouterr().err.split())


def test_what_a_run_was_trained_with_before_is_kept(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    first = (copy / "config.yaml").read_text()
    more = ("resume=auto", "optim.lr=0.001", "train.steps=8")
    assert main(tiny.train(copy, *more)) == 0
    assert main(tiny.train(copy, *more)) == 0, "nothing to do, nothing to keep"
    assert (copy / "config-until-00000006.yaml").read_text() == first
    now = yaml.safe_load((copy / "config.yaml").read_text())
    assert now["train"]["steps"] == 8 and len(list(copy.glob("config*"))) == 2


def test_a_run_of_broken_checkpoints_is_not_overwritten(
    tiny: Tiny, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    (copy / "checkpoints" / "step-00000006" / "optimizer.safetensors").write_bytes(b"cut off")
    assert main(tiny.train(copy, "resume=auto", "train.steps=9")) == 2
    check_line(capsys, "holds no whole checkpoint, step-00000006 is broken: give another run_dir")
    assert metrics(copy) == metrics(run_dir)


# train.debug=overfit


def test_one_batch_is_learnt_by_heart_in_every_direction(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("train.debug=overfit", "train.steps=300", "optim.lr=0.003", "train.log_every=50")
    assert main(tiny.train(tmp_path / "run", *options)) == 0
    assert "9 of 9 directions are learnt by heart" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_learnt_is_named_with_its_reason(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = spoilt(tiny, tmp_path, 1, png=b"no picture")
    options = ("train.debug=overfit", "train.steps=2", "data.hold_out=[audio>text,text>audio]")
    assert main(tiny.train(tmp_path / "run", root, *options)) == 1
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if "image>text:fr (every sample of it is broken; the first: " in line]
    assert "train-000000.tar: " in line and "the picture is none of PNG" in line
    assert any(line.startswith("not learnt after 2 steps: text:en>text:fr (loss 5.") for line in said)
    assert said[-1] == "0 of 6 directions are learnt by heart"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_training_has_nearly_the_same_losses(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("false", "true"):
        assert main(tiny.train(tmp_path / name, "train.steps=3", f"train.compile={name}")) == 0
    plain, compiled = (metrics(tmp_path / name) for name in ("false", "true"))
    assert [it["loss"] for it in compiled] == pytest.approx([it["loss"] for it in plain], rel=1e-3)
    assert compiled[0]["padding"] >= plain[0]["padding"]
