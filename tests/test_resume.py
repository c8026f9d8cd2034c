import pytest
import torch

from anyxform import resume
from anyxform.checkpoint import model_tensors
from anyxform.train import TrainState, train
from tests.toy import toys
from tests.toy_training import toy_rows, toy_state

CHANCE = {"dropout": 0.1, "layer_dropout": 0.3}
SETTINGS = {"seed": 3, "model": {"dim": 32}}
OPTIONS = {"lr": lambda step: 3e-3 / (1 + step), "rows_per_step": 2, "seed": 3, "exit_every": 2}


def trained(steps: int, state: TrainState | None = None) -> tuple[TrainState, list[float]]:
    state = state or toy_state(**CHANCE)
    return state, [m["loss"] for m in train(state, toy_rows(state.position), steps=steps, **OPTIONS)]


def saved(run_dir, state, **options):
    return resume.save(run_dir, state, toys(), settings=SETTINGS, directions=[], facts={}, **options)


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
        saved(tmp_path, state, keep=2)
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
