import errno
import re
import threading

import pytest
import torch

from anyxform import checkpoint, resume
from anyxform.checkpoint import model_tensors
from anyxform.distributed import World
from anyxform.sharded_files import Part
from anyxform.train import TrainState, train
from tests.toy import toys
from tests.toy_training import toy_rows, toy_state

CHANCE = {"dropout": 0.1, "layer_dropout": 0.3}
SETTINGS = {"seed": 3, "model": {"dim": 32}}
OPTIONS = {"lr": lambda step: 3e-3 / (1 + step), "rows_per_step": 2, "seed": 3, "exit_every": 2}


def trained(steps: int, state: TrainState | None = None) -> tuple[TrainState, list[float]]:
    state = state or toy_state(**CHANCE)
    return state, [m["loss"] for m in train(state, toy_rows(state.position), steps=steps, **OPTIONS)]


def taken(state, **options):
    return resume.snapshot(state, toys(), settings=SETTINGS, directions=[], facts={}, **options)


def saved(run_dir, state, **keep):
    return resume.write(run_dir, taken(state), resume.Keep(**keep))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_resumed_run_equals_the_uninterrupted_bit_for_bit(tmp_path, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    whole, expected = trained(12)
    first, losses = trained(5)
    folder = saved(tmp_path, first)
    second = toy_state(**CHANCE)
    resume.load(folder, second, SETTINGS, toys())
    losses += trained(12, second)[1]
    torch.set_num_threads(before)
    assert losses == expected
    for name, tensor in model_tensors(whole.model).items():
        assert torch.equal(tensor, model_tensors(second.model)[name]), name
        assert torch.equal(whole.ema.weights[name], second.ema.weights[name]), name
    assert (second.step, second.position, second.tokens) == (whole.step, whole.position, whole.tokens)


def test_inference_gets_the_average_and_resuming_the_raw_weights(tmp_path):
    from safetensors.torch import load_file

    state, _ = trained(3)
    folder = saved(tmp_path, state)
    for name, tensor in model_tensors(state.model).items():
        assert torch.equal(load_file(folder / "weights.safetensors")[name], tensor)
        assert torch.equal(load_file(folder / "model.safetensors")[name], state.ema.weights[name])


def test_without_an_average_there_is_one_file_of_weights(tmp_path):
    state, _ = trained(2, toy_state(ema=None))
    folder = saved(tmp_path, state)
    assert not (folder / "weights.safetensors").exists()
    other = toy_state(ema=None)
    resume.load(folder, other, SETTINGS, toys())
    assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), other.model.parameters()))


def test_the_last_few_are_kept_and_latest_names_the_newest(tmp_path):
    state = toy_state()
    for step in range(1, 6):
        state.step = step
        saved(tmp_path, state, newest=2)
    assert [folder.name for folder in resume.checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000005\n"


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors", "weights.safetensors"])
def test_a_broken_checkpoint_is_passed_over(tmp_path, name):
    state = toy_state()
    assert resume.newest_whole(tmp_path) is None
    whole = saved(tmp_path, state)
    state.step = 9
    broken = saved(tmp_path, state) / name
    assert resume.newest_whole(tmp_path) == broken.parent
    broken.write_bytes(broken.read_bytes()[:-7])
    assert resume.newest_whole(tmp_path) == whole


def test_what_a_killed_process_left_is_tidied_before_a_start_is_looked_for(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / ".step-00000007.123.tmp").mkdir(parents=True)
    assert resume.first_checkpoint(tmp_path, "auto", named=True) is None
    assert not list(folder.iterdir())
    whole = saved(tmp_path, toy_state())
    whole.rename(folder / f".{whole.name}.123.old")  # killed before the new one took its place
    assert resume.first_checkpoint(tmp_path, "auto", named=True) == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "seed": 4}, "was trained with seed=3, not 4: resume with that, or start anew in another run_dir"),
        ({**SETTINGS, "model": {"dim": 64}}, r"was trained with model\.dim=32, not 64"),
    ],
)
def test_settings_that_must_not_change(tmp_path, settings, message):
    folder = saved(tmp_path, toy_state())
    with pytest.raises(ValueError, match=message):
        resume.load(folder, toy_state(), settings, toys())


def test_the_best_and_every_so_many_are_kept_too(tmp_path):
    state = toy_state()
    for step, loss in enumerate([3.0, 1.5, 2.0, None, 2.5, 1.9, 2.2], start=1):
        state.step = step
        resume.write(tmp_path, taken(state, val_loss=loss), resume.Keep(newest=1, best=True, every=3))
    assert [int(folder.name[-8:]) for folder in resume.checkpoints(tmp_path)] == [2, 3, 6, 7]


def test_what_is_being_written_does_not_change_with_the_training(tmp_path):
    state, _ = trained(3)
    before = {name: tensor.clone() for name, tensor in model_tensors(state.model).items()}
    copy = taken(state)
    trained(6, state)
    folder = resume.write(tmp_path, copy)
    other = toy_state(**CHANCE)
    resume.load(folder, other, SETTINGS, toys())
    assert other.step == 3 and all(torch.equal(model_tensors(other.model)[name], t) for name, t in before.items())


def test_checkpoints_are_written_beside_the_training(tmp_path, monkeypatch):
    """The training is not kept waiting by the first, and waits with the second until the first is written."""
    slow, release = threading.Event(), threading.Event()
    monkeypatch.setattr(checkpoint, "write", held_up(checkpoint.write, slow, release))
    state = toy_state()
    with resume.Saver(tmp_path) as saver:
        saver.save(taken(state))
        assert slow.wait(10) and resume.checkpoints(tmp_path) == []
        threading.Timer(0.2, release.set).start()
        state.step = 1
        saver.save(taken(state))
        assert [folder.name for folder in resume.checkpoints(tmp_path)][:1] == ["step-00000000"]
        saver.wait()
        assert len(resume.checkpoints(tmp_path)) == 2


def held_up(call, began, release):
    def wrapper(*arguments):
        began.set()
        release.wait(10)
        return call(*arguments)

    return wrapper


def test_a_full_disk_leaves_the_last_good_one_and_says_so(tmp_path, monkeypatch):
    state, said = toy_state(), []
    with resume.Saver(tmp_path, failed=said.append) as saver:
        saver.save(taken(state))
        saver.wait()
        monkeypatch.setattr(checkpoint, "_sync", full)
        state.step = 5
        saver.save(taken(state))
        state.step = 6
        saver.save(taken(state))  # tried again, whatever became of the one before
        message = (
            "the checkpoint of step {} cannot be written .*No space left on device.*: the run can go on from .*0000"
        )
        assert len(said) == 1 and re.search(message.format(5), said[0])
        with pytest.raises(OSError, match=message.format(6)):
            saver.wait()
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir() if folder.is_dir()] == ["step-00000000"]
    assert resume.newest_whole(tmp_path).name == "step-00000000"


def full(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def part_of(rank: int, processes: int = 2) -> resume.Snapshot:
    """What one process of several would write of a tensor with a row for each."""
    files = {"model.safetensors": Part(rank, processes, {"a": torch.full((1, 2), rank)}, {"a": [rank, 0]})}
    return resume.Snapshot(3, files | ({"state.json": {}} if rank == 0 else {}), World(rank, processes), sharded=True)


def test_a_process_that_leads_waits_for_the_parts_of_all(tmp_path):
    with resume.Saver(tmp_path) as first, resume.Saver(tmp_path) as second:
        first.save(part_of(0))
        assert not resume.checkpoints(tmp_path)
        second.save(part_of(1))
        first.wait()
    (folder,) = resume.checkpoints(tmp_path)
    checkpoint.verify(folder)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    parts = [f"model/part-0000{rank}-of-00002.safetensors" for rank in range(2)]
    assert names == ["manifest.json", *parts, "state.json"]
    (folder / parts[1]).unlink()
    with pytest.raises(ValueError, match=r"part-00001-of-00002.safetensors is missing"):
        checkpoint.verify(folder)


def test_a_part_that_cannot_be_written_leaves_the_last_good_one(tmp_path, monkeypatch):
    whole = saved(tmp_path, toy_state())
    sync = checkpoint._sync
    monkeypatch.setattr(checkpoint, "_sync", lambda path: full(path) if "part-00001" in path.name else sync(path))
    with resume.Saver(tmp_path) as first, resume.Saver(tmp_path) as second:
        first.save(part_of(0))
        second.save(part_of(1))
        with pytest.raises(OSError, match=r"step 3 cannot be written \(process 1: .*No space.*can go on from .*0000"):
            first.wait()
        with pytest.raises(OSError, match="No space left"):
            second.wait()
    with pytest.raises(OSError, match="process 1 has not written its part within 0 s"):
        resume.write(tmp_path, part_of(0), timeout=0)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == [whole.name]
