"""Start from what exists: logits are those of transformers, what cannot be used is refused, and what fits is taken."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyxform import checkpoint, load
from anyxform.cli import main
from anyxform.field import Direction
from anyxform.init_from import begin, open_origin, told
from anyxform.modality import get_modality
from anyxform.model import Transformer
from anyxform.parts import part_of
from anyxform.sequence import Example, Target, marker, pack
from tests.published import BEGIN, DEPTH, DIM, END, TEXTS, published, tokenizer
from tests.tiny import Tiny

pytest.importorskip("transformers")

KINDS = {
    "qwen3": {"architecture": "Qwen3", "tied": True},
    "qwen3 in several files": {"architecture": "Qwen3", "shards": True},
    "llama": {"architecture": "Llama"},
    "tied llama": {"architecture": "Llama", "tied": True},
}


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return published(tmp_path_factory.mktemp("published") / "model", **KINDS[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("llama") / "model", "Llama")[0]


def begun(folder: Path, deeper: int = 0) -> tuple[Transformer, Any]:
    origin = open_origin(folder)
    text = origin.modality("text", max_length=32)
    sizes = origin.sizes | {"depth": origin.sizes["depth"] + deeper}
    model = Transformer(modalities={"text": text}, conditions=["en", marker("text")], **sizes).eval()
    taken = told(model, begin(model, origin, {"text": text}))
    assert "stack" in taken and taken.endswith("fresh: nothing"), taken
    assert (f"stack (but blocks.{origin.sizes['depth']}." in taken) == bool(deeper)
    return model, text


@torch.no_grad()
def test_a_deeper_model_begins_as_the_same_function(pair: tuple[Path, Any]) -> None:
    folder, _ = pair
    found = []
    for deeper in (0, 2):
        model, text = begun(folder, deeper)
        batch = pack([language_modelling(text, value) for value in TEXTS[:3]], model.condition_ids)
        found.append(model(batch)["text"])
    assert torch.equal(*found) and found[0].abs().max() > 0.5


def language_modelling(text: Any, value: str, *conditions: str) -> Example:
    codes = text.codes(text.preprocess(value))[:, None]
    target = Target("text", codes, text.code_positions(len(codes)), text.vocab_size, fixed_length=False)
    return Example("key", "text>text", (), conditions, target)


# Parity


@torch.no_grad()
def test_logits_of_texts_are_those_of_transformers(pair: tuple[Path, Any]) -> None:
    """Without a prefix, and with the marker alone, which is the token that begins a text."""
    folder, reference = pair
    model, text = begun(folder)
    tokens = tokenizer()
    rows = text.adopt(model.front_ends["text"], reference.model.embed_tokens.weight)
    read = torch.cat([rows, torch.tensor([tokens.token_to_id(END)])])  # of our columns, the last is the end
    for prefix, before in (((), []), ((marker("text"),), [tokens.token_to_id(BEGIN)])):
        batch = pack([language_modelling(text, value, *prefix) for value in TEXTS[:5]], model.condition_ids)
        ids = [torch.tensor([[*before, *tokens.encode(value).ids]]) for value in TEXTS[:5]]
        theirs = torch.cat([reference(each).logits[0] for each in ids])[:, read]
        torch.testing.assert_close(model(batch)["text"][:, 0], theirs, rtol=0, atol=1e-4)
        assert theirs.abs().max() > 0.5  # not equal for being nothing


@torch.no_grad()
def test_texts_as_sources_are_its_embeddings(pair: tuple[Path, Any]) -> None:
    folder, reference = pair
    model, text = begun(folder)
    embedded = model.front_ends["text"](text.preprocess(TEXTS[0]), []) + model.source_embedding["text"]
    ids = torch.tensor(tokenizer().encode(TEXTS[0]).ids)
    torch.testing.assert_close(embedded, reference.model.embed_tokens(ids))


def test_config_rebuilds_a_model_without_norms_of_queries(llama: Path) -> None:
    model, text = begun(llama)
    assert model.config()["qk_norm"] is False and not any("q_norm" in name for name in model.state_dict())
    again = Transformer(modalities={"text": text}, conditions=["en", marker("text")], **model.config())
    again.load_state_dict(model.state_dict())


# Its tokenizer


def test_special_tokens_are_no_codes_and_in_a_text_ordinary_characters(llama: Path) -> None:
    import pickle

    fitted = open_origin(llama).modality("text")
    assert fitted is not None
    tokens = tokenizer()
    assert fitted.vocab_size == tokens.get_vocab_size() - 2
    for text in (fitted, pickle.loads(pickle.dumps(fitted)), type(fitted)(**fitted.config())):
        value = f"a {END} red <think> disc{BEGIN}"
        codes = text.codes(text.preprocess(value))
        assert text.from_codes(codes) == value and codes.max() < text.vocab_size
        assert text.from_codes(torch.arange(text.vocab_size)).count(END) == 0


def test_a_tokenizer_that_changes_texts_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    changed = json.loads((folder / "tokenizer.json").read_text())
    changed["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"tokenizer.json does not give every text back"):
        open_origin(folder).modality("text")
    origin, own = open_origin(folder), get_modality("text")()
    model = Transformer(modalities={"text": own}, conditions=[marker("text")], **origin.sizes)
    assert told(model, origin.fill(model, {"text": own})) == "stack; fresh: conditions, text"


# What is not supported


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel: supported are LlamaForCausalLM, Qwen3ForCausalLM"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "scales rotary positions"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "scales rotary positions"),
        ({"attention_bias": True}, "attention_bias=True: this is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding windows"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"hidden_size": None}, "config.json lacks hidden_size"),
        ({"hidden_size": "wide"}, "config.json has a size that is none"),
        ({"intermediate_size": 96}, r"mlp.\w+_proj.weight has shape \(.*\), but by its config.json \("),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        ({"num_hidden_layers": 1}, "has model.layers.1"),
    ],
    ids=str,
)
def test_what_computes_anything_else_is_refused(
    changes: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: it for key, it in config.items() if it is not None}))
    with pytest.raises(ValueError, match=message):
        begun(folder)


def test_biases_and_weights_in_other_formats_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"has model.layers.0.self_attn.q_proj.bias, for which the stack has no place"):
        begun(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no model.safetensors: weights in other formats are not read"):
        begun(folder)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    folder, _ = published(tmp_path / "model", "Llama", shards=True)
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(ValueError, match=rf"{last.name} cannot be read"):
        begun(folder)


# The command


def weights(run_dir: Path, name: str = "model") -> dict[str, Tensor]:
    """Of the newest checkpoint."""
    (folder,) = sorted((run_dir / "checkpoints").glob("step-*"))[-1:]
    return load_file(folder / f"{name}.safetensors")


def test_a_run_begins_with_a_language_model_and_goes_on_without_it(
    llama: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(llama, tmp_path / "llama")
    words = (f"model.init_from={folder}", "train.freeze=[stack]", "modality.text.max_length=32")
    assert main(tiny.train(tmp_path / "run", *words, "train.steps=2")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"from {folder}: " in said and "fresh: image, audio" in said
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert (config["dim"], config["depth"], config["qk_norm"]) == (DIM, DEPTH, False)
    own, theirs = weights(tmp_path / "run", "weights"), load_file(llama / "model.safetensors")
    assert torch.equal(own["blocks.1.mlp.down.weight"], theirs["model.layers.1.mlp.down_proj.weight"]), "it is frozen"
    assert not torch.equal(own["targets.text.head"][0, 0], theirs["lm_head.weight"][1]), "this is not"
    shutil.rmtree(folder)
    assert main(tiny.train(tmp_path / "run", *words, "train.steps=4", "resume=auto")) == 0
    assert torch.equal(weights(tmp_path / "run")["blocks.1.mlp.down.weight"], own["blocks.1.mlp.down.weight"])


def facts(run: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((checkpoint.find(run) / "config.json").read_text())["facts"]
    return recorded


def test_what_it_began_with_is_kept_on_record(llama: Path, tiny: Tiny, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(tiny.train(first, f"model.init_from={llama}", "train.steps=1")) == 0
    assert main(tiny.train(second, f"model.init_from={first}", "train.steps=1")) == 0
    shutil.rmtree(first)
    assert main(tiny.train(second, f"model.init_from={first}", "train.steps=2", "resume=auto")) == 0
    published, ours = facts(second)["began_with"]
    assert published == {"name": llama.name, "architecture": "LlamaForCausalLM"}
    assert ours["name"] == "first" and ours["steps"] == 1 and ours["tokens"] > 0 and "train.steps=1" in ours["command"]
    assert main(["card", str(second)]) == 0
    card = (second / "MODEL_CARD.md").read_text()
    assert f"- It began with the weights of {llama.name}: LlamaForCausalLM.\n" in card
    assert f"- It began with the weights of first: 1 steps, {ours['tokens']} tokens, " in card


def test_directions_that_were_trained_before_are_trained(run_dir: Path, tiny: Tiny, tmp_path: Path) -> None:
    words = (f"model.init_from={run_dir}", "data.hold_out=[image>text]", "~modality@modality.audio")
    assert main(tiny.train(tmp_path / "run", *words, "train.steps=1")) == 0
    assert main(tiny.train(tmp_path / "run", *words, "train.steps=2", "resume=auto")) == 0
    before, after = (
        json.loads((checkpoint.find(run) / "config.json").read_text())["directions"]
        for run in (run_dir, tmp_path / "run")
    )
    assert any("audio" in it for it in before) and any(it.startswith("image>text") for it in after)
    assert {it for it in before if "audio" not in it} == set(after)


def test_what_fits_of_a_checkpoint_of_ours_is_taken(
    run_dir: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is one with audio and without other modalities' words; its sizes need not be given."""
    words = (f"model.init_from={run_dir}", "~modality@modality.audio", "train.steps=1", "optim.lr=1e-12")
    assert main(tiny.train(tmp_path / "run", *words, "modality.text.max_length=30", "model.layer_dropout=0.1")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "text (but targets.text.length.weight, targets.text.length.bias)" in said and said.count("fresh:") == 1
    before, after = weights(run_dir), weights(tmp_path / "run")
    for name in ("blocks.0.mlp.down.weight", "targets.image.embedding", "front_ends.text.table.weight"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert not any("audio" in name for name in after)


def test_a_deeper_model_goes_on_from_a_checkpoint_of_ours(run_dir: Path, tiny: Tiny, tmp_path: Path) -> None:
    first = (f"model.init_from={run_dir}", "model.depth=4", "optim.lr=1e-3")
    assert main(tiny.train(tmp_path / "run", *first, "train.steps=2")) == 0
    assert main(tiny.train(tmp_path / "run", *first, "train.steps=3", "resume=auto")) == 0
    before, after = weights(run_dir), weights(tmp_path / "run")
    assert after.keys() - before.keys() == {name for name in after if name.startswith(("blocks.2.", "blocks.3."))}
    assert after["blocks.3.mlp.down.weight"].abs().max() > 0  # what adds nothing at first is learnt


def test_targets_along_their_sources_begin_with_a_checkpoint_of_ours(run_dir: Path, tiny: Tiny, tmp_path: Path) -> None:
    """And what begins with that has them too, unless something else is said."""
    first = (f"model.init_from={run_dir}", "model.target_positions=along", "+modality.text.pace=3", "train.steps=1")
    assert main(tiny.train(tmp_path / "along", *first)) == 0
    then = (f"model.init_from={tmp_path / 'along'}", "train.steps=1")
    assert main(tiny.train(tmp_path / "same", *then)) == 0
    assert main(tiny.train(tmp_path / "after", *then, "model.target_positions=after")) == 0
    found = {name: load(tmp_path / name).model.config()["target_positions"] for name in ("along", "same", "after")}
    assert found == {"along": "along", "same": "along", "after": "after"}
    speech = ("model.target_positions={audio: along}", "+modality.audio.pace=0.33", "+modality.audio.delay=true")
    assert main(tiny.train(tmp_path / "speech", f"model.init_from={run_dir}", *speech, "train.steps=1")) == 0
    assert (
        main(tiny.train(tmp_path / "speech", f"model.init_from={run_dir}", *speech, "train.steps=2", "resume=auto"))
        == 0
    )
    assert load(tmp_path / "speech").model.along == {"audio"}


def test_texts_are_read_letter_by_letter_to_be_said(run_dir: Path, tiny: Tiny, tmp_path: Path) -> None:
    """In training and in answering; a checkpoint that knew tokens goes on like this."""
    words = (f"model.init_from={run_dir}", "+modality.text.letters_for=[audio]", "train.steps=1")
    assert main(tiny.train(tmp_path / "run", *words)) == 0
    ax, direction = load(tmp_path / "run"), Direction.parse("text:en>audio")
    assert len(ax.request(direction, ["a red disc"]).sources[0].values) == 10
    assert len(ax.request(Direction.parse("text:en>image"), ["a red disc"]).sources[0].values) < 10
    assert ax("a red disc", to="audio").seconds > 0


def test_letters_for_a_modality_that_there_is_not_are_an_error(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.train(tmp_path / "run", "+modality.text.letters_for=[audoi]")) == 2
    assert "text is to be read apart for 'audoi': did you mean 'audio'?" in capsys.readouterr().err


def test_tables_of_another_tokenizer_are_left(
    run_dir: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However well their shapes fit."""
    other = shutil.copytree(tiny.root / "tokenizers" / "text", tmp_path / "text")
    config = json.loads((other / "config.json").read_text())
    vocabulary = json.loads(config["config"]["tokenizer"])["model"]["vocab"]
    turned = {token: len(vocabulary) - 1 - number for token, number in vocabulary.items()}
    tokenizer = json.loads(config["config"]["tokenizer"])
    tokenizer["model"]["vocab"] = turned
    config["config"]["tokenizer"] = json.dumps(tokenizer)
    (other / "config.json").write_text(json.dumps(config))
    words = (f"model.init_from={run_dir}", f"+modality.text.tokenizer={other}", "train.steps=1")
    assert main(tiny.train(tmp_path / "run", *words)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "text (but front_ends.text.table.weight, targets.text.embedding" in said


def test_parts_learn_at_rates_of_their_own(tiny: Tiny, run_dir: Path, tmp_path: Path) -> None:
    words = (f"model.init_from={run_dir}", "train.steps=2", "optim.part_lr.stack=1e-9", "optim.warmup=0")
    for optimizer in ("adamw", "muon"):
        assert main(tiny.train(tmp_path / optimizer, *words, f"optim={optimizer}")) == 0
        before, after = weights(run_dir), weights(tmp_path / optimizer, "weights")
        moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
        assert max(by for name, by in moved.items() if part_of(name) == "stack") < 1e-6
        assert moved["targets.text.embedding"] > 1e-4 and moved["condition_embedding.weight"] > 1e-4


def test_everything_but_the_stack_is_trained_with_muon_too(tiny: Tiny, tmp_path: Path) -> None:
    assert main(tiny.train(tmp_path / "run", "train.freeze=[stack]", "optim=muon", "train.steps=2")) == 0
    assert not any(name.startswith("blocks.") for name in weights(tmp_path / "run", "optimizer"))
    assert main(tiny.train(tmp_path / "run", "train.freeze=[stack]", "optim=muon", "train.steps=3", "resume=auto")) == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_trained_may_change_where_a_run_goes_on(tiny: Tiny, tmp_path: Path, optimizer: str) -> None:
    words = (f"optim={optimizer}", "train.ema=null")
    assert main(tiny.train(tmp_path / "run", *words, "train.steps=2")) == 0
    before = weights(tmp_path / "run")
    assert main(tiny.train(tmp_path / "run", *words, "train.freeze=[stack]", "train.steps=4", "resume=auto")) == 0
    after = weights(tmp_path / "run")
    moved = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert moved and "stack" not in moved
    assert main(tiny.train(tmp_path / "run", *words, "train.steps=5", "resume=auto")) == 0
    last = weights(tmp_path / "run")
    assert any(part_of(name) == "stack" and not torch.equal(after[name], last[name]) for name in after)


def test_another_optimizer_needs_another_run(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first, other in (("adamw", "muon"), ("muon", "adamw")):
        assert main(tiny.train(tmp_path / first, f"optim={first}", "train.steps=1")) == 0
        kept = (tmp_path / first / "config.yaml").read_text()
        assert main(tiny.train(tmp_path / first, f"optim={other}", "train.steps=2", "resume=auto")) == 2
        assert "was trained with another optim.name: resume with that" in capsys.readouterr().err
        assert (tmp_path / first / "config.yaml").read_text() == kept


def test_a_backbone_is_trained_or_kept_saved_and_gone_on_with(tiny: Tiny, tmp_path: Path) -> None:
    backbone = ("+modality.image.backbone=test_resnet", "+modality.image.backbone_size=64")
    for frozen in ("true", "false"):
        words = (*backbone, f"+modality.image.frozen={frozen}", "train.ema=null")
        runs = [tmp_path / frozen / name for name in ("whole", "parts")]
        assert main(tiny.train(runs[0], *words, "train.steps=3", "train.checkpoint_every=1")) == 0
        assert main(tiny.train(runs[1], *words, "train.steps=1")) == 0
        assert main(tiny.train(runs[1], *words, "train.steps=3", "resume=auto")) == 0
        first, last = (load_file(runs[0] / "checkpoints" / f"step-{n:08d}" / "model.safetensors") for n in (1, 3))
        moved = {name for name in first if not torch.equal(first[name], last[name])}
        assert any(name.startswith("front_ends.image.model.") for name in moved) == (frozen == "false")
        assert "front_ends.image.project.weight" in moved
        again = weights(runs[1])
        assert last.keys() == again.keys() and all(torch.allclose(again[name], it) for name, it in last.items())


def test_the_plan_has_its_sizes(llama: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-dir", str(tiny.conf), "experiment=tiny", f"model.init_from={llama}", "--gpu", "h100"]
    assert main(["plan", *words, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["parameters"]
    assert main(tiny.train(tmp_path / "run", f"model.init_from={llama}", "train.steps=1")) == 0
    config = json.loads(next((tmp_path / "run" / "checkpoints").glob("step-*/config.json")).read_text())
    assert planned == config["facts"]["parameters"]
    assert main(["plan", *words, "--sizes"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.dim=64"], "model.dim= says dim=64, but {folder} has dim=48: leave model.dim= out"),
        (["model.depth=null"], "model.depth= says depth=None, but {folder} has depth=2: leave model.depth= out"),
        (["model.depth=1"], "model.depth= says depth=1, but {folder} has depth=2: leave model.depth= out"),
        (["model=nano"], "model= says dim=32, but {folder} has dim=48: leave model= out"),
        (["train.freeze=[stakc]"], "train.freeze names the part 'stakc', which the model lacks: did you mean 'stack'?"),
        (["train.freeze=[stack,conditions,text,image,audio]"], "leaves nothing to train: freeze less"),
        (["optim.part_lr.txt=1e-4"], "optim.part_lr names the part 'txt', which the model lacks: did you mean 'text'?"),
        (["optim.part_lr.text=no"], "optim.part_lr.text=no beside optim.lr=0.003 is not possible"),
        (["model.init_from=/nowhere"], "there is no checkpoint at /nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, llama: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny.train(tmp_path / "run", f"model.init_from={llama}", *words)) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("anyxform: error: ") and message.format(folder=llama) in last
    assert not (tmp_path / "run").exists()
