"""What every command has in common: help, errors in one line with the nearest right word, and configs."""

from pathlib import Path

import pytest

from anyxform.cli import COMMANDS, main
from anyxform.cli.conf import compose, usage

HYDRA = ("train", "eval", "tokenizer")


def run(arguments: list[str]) -> int:
    """The exit code of a command, however it leaves."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, flag]) == 0
    said = capsys.readouterr()
    assert said.out.startswith((f"usage: anyxform {command}", f"# anyxform {command} ")) and not said.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"], ["help"]):
        assert run(arguments) == 0
        said = capsys.readouterr().out
        assert all(f"\n  {command} " in said for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command is called 'trian': did you mean 'train'?"),
        (["xyz"], "no command is called 'xyz': known: card, data,"),
        (["train", "train.stpes=3"], "no config key is called 'train.stpes': did you mean 'train.steps'?"),
        (["train", "modality.text.max_lenght=3"], "did you mean 'modality.text.max_length'?"),
        (["train", "modality@modality.tex=text"], "did you mean 'modality@modality.text'?"),
        (["train", "modle=tiny"], "no config key is called 'modle': did you mean 'model'?"),
        (["train", "model=tinny"], "there is no config 'model/tinny': did you mean 'tiny'?"),
        (["train", "zzz=1"], "no config key is called 'zzz': known: data, distributed, experiment"),
        (
            ["train", "zzz=1", "train.stpes=3"],
            "no config key is called 'zzz': known: data, distributed, experiment",
        ),
        (["train", "~modality@modality.adio"], "did you mean 'modality@modality.audio'?"),
        (["train", "train.steps"], "'train.steps' is not an override: write key=value"),
        (["train", "--steps=3"], "'--steps=3' is not an override: write key=value"),
        (["train", "train.steps=${oops}"], "Interpolation key 'oops' not found"),
        (["train", "--config-dir", "/nowhere"], "--config-dir: there is no folder '/nowhere'"),
        (["train", "--config-dir"], "argument --config-dir: expected one argument"),
        (["tokenizer"], "modality= must be given: audio, image, text"),
        (["tokenizer", "modality=txt"], "there is no config 'modality/txt': did you mean 'text'?"),
        (["tokenizer", "modality=text", "modality.vocabsize=9"], "did you mean 'modality.vocab_size'?"),
        (["eval", "limi=3"], "no config key is called 'limi': did you mean 'limit'?"),
        (["data"], "the following arguments are required: command (see: anyxform data --help)"),
        (["modalities", "text"], "unrecognized arguments: text (see: anyxform modalities --help)"),
        (["doctor", "--jsn"], "unrecognized arguments: --jsn (see: anyxform doctor --help)"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("anyxform: error: ") and not said.out
    assert said.err.count("\n") == 1 and len(said.err) < 300


def test_tracebacks_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYXFORM_DEBUG", "1")
    with pytest.raises(ValueError, match="did you mean 'train'"):
        main(["trian"])


# Configs


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of the user's own configs, with a name that has to be quoted elsewhere."""
    folder = tmp_path / "my conf, [it's = mine]"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("dim: 48 # small\n")
    (folder / "model" / "nano.yaml").write_text("dim: 24\n")
    (folder / "model" / "broken.yaml").write_text("dim: [1\n")
    return folder


@pytest.mark.parametrize("name", HYDRA)
def test_help_shows_every_key_with_its_comment(name: str) -> None:
    overrides = ["modality=text"] if name == "tokenizer" else []
    shown = {line.split(":")[0].strip() for line in usage(name, overrides).splitlines()}

    def keys(tree: object) -> set[str]:
        """All but those that stand in one line with others."""
        return set().union(*(keys(tree[key]) | {key} for key in tree)) if isinstance(tree, dict) else set()

    config = compose(name, overrides)
    expected = keys({key: value for key, value in config.items() if key not in ("data", "modality")})
    assert expected and expected <= shown and config["data"].keys() <= shown
    assert name == "eval" or "vocab_size: 4096 # the most" in usage(name, overrides)


def test_help_shows_the_options_of_each_group_and_what_is_chosen(own: Path) -> None:
    assert "# model=base|large|mini|nano|small|tiny|xl\n# tiny:\nmodel:\n  # tiny, about" in usage("train")
    assert "# experiment=demo|speech|starter" in usage("train")
    assert "# modality@modality.audio=audio|image|text\n# audio:\nmodality.audio:\n" in usage("train")
    chosen = usage("train", ["model=mine"], own)
    assert "# model=base|broken|large|mine|mini|nano|small|tiny|xl\n# mine:\nmodel:\n  dim: 48 # small" in chosen


def test_configs_of_the_user_come_first(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose("train", ["--config-dir", str(own), "model=mine"])["model"]["dim"] == 48
    assert compose("train", [f"--config-dir={own}", "model=nano"])["model"]["dim"] == 24
    assert compose("train", ["model=nano"])["model"]["dim"] == 128, "the folder outlives its call"
    monkeypatch.setenv("ANYXFORM_CONF", str(own))
    assert compose("train", ["model=mine"])["model"]["dim"] == 48


def test_a_broken_config_is_named(own: Path) -> None:
    with pytest.raises(ValueError, match=r"no YAML: .*model/broken\.yaml.*line 1"):
        compose("train", ["--config-dir", str(own), "model=broken"])
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        compose("train", ["--config-dir", str(own), "model=mime"])


def test_a_config_is_plain_and_resolved() -> None:
    config = compose("train", ["data.root=/data/mine", "train.steps=7"])
    assert config["tokenizers"] == "/data/mine/tokenizers" and config["train"]["steps"] == 7
    assert type(config) is type(config["modality"]) is dict and type(config["optim"]["betas"]) is list
    assert list(config["modality"]) == ["text", "image", "audio"]
    assert list(compose("train", ["~modality@modality.audio"])["modality"]) == ["text", "image"]


@pytest.mark.parametrize("experiment", ["starter", "demo", "speech"])
def test_experiments_compose(experiment: str) -> None:
    plain, config = compose("train", []), compose("train", [f"experiment={experiment}"])
    assert plain != config and plain.keys() == config.keys()
    assert plain["train"].keys() == config["train"].keys() and plain["model"].keys() == config["model"].keys()
