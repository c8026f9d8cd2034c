"""The Transformer: presets, initialisation, normalised queries and keys, early exits, skipped layers, tied weights."""

import copy
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from anyxform.layers import RMSNorm
from anyxform.loss import batch_loss
from anyxform.model import PRESETS, Transformer, compile_blocks
from anyxform.sequence import marker, pack
from tests.toy import toys
from tests.toy_training import CONDITIONS, DIRECTIONS, toy_example, toy_model, toy_row

CONF = Path(__file__).parents[1] / "conf" / "model"


def plain_model(**sizes: float) -> Transformer:
    """The shared stack alone."""
    return Transformer(modalities={}, conditions=[], **({"dim": 64, "depth": 2, "num_heads": 2} | sizes))


# Sizes


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_as_large_as_it_is_called(name: str) -> None:
    with torch.device("meta"):
        model = plain_model(**PRESETS[name])
    number, unit = re.match(rf"# {name}, about ([\d.]+) ([MB]) ", (CONF / f"{name}.yaml").read_text()).groups()
    called = float(number) * {"M": 1e6, "B": 1e9}[unit]
    assert sum(p.numel() for p in model.blocks.parameters()) == pytest.approx(called, rel=0.2)
    assert model.head_dim == (128 if name in ("large", "xl") else 64)


def test_presets_are_those_of_the_configs() -> None:
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in CONF.glob("*.yaml")}
    others = {"dropout": 0.0, "layer_dropout": 0.0, "target_positions": "after"}
    assert configs == {name: sizes | others for name, sizes in PRESETS.items()}


@pytest.mark.parametrize(
    "sizes",
    [{"num_heads": 4, "num_kv_heads": 3}, {"num_kv_heads": 4}, {"num_heads": 3}, {"num_heads": 64}, {"head_dim": 7}],
    ids=str,
)
def test_impossible_heads_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=r"num_heads=\d+ must be a multiple of num_kv_heads=\d+, and head_dim=\d+ even"
    ):
        plain_model(**sizes)


def test_unknown_target_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="target_positions=allong: did you mean 'along'"):
        plain_model(**PRESETS["nano"], target_positions="allong")
    with pytest.raises(ValueError, match="target_positions=0: "):
        plain_model(**PRESETS["nano"], target_positions={"text": 0})
    for wrong in (None, ["text"], 3):
        with pytest.raises(ValueError, match="give after, along, or a choice by modality"):
            plain_model(**PRESETS["nano"], target_positions=wrong)
    with pytest.raises(ValueError, match="target_positions of 'texts': did you mean 'text'"):
        toy_model(target_positions={"texts": "along"})


@pytest.mark.parametrize("target_positions", ["along", {"text": "along"}], ids=str)
def test_config_rebuilds_the_model(target_positions: str | dict[str, str]) -> None:
    others = {"tie_embeddings": False, "target_positions": target_positions}
    model = toy_model(num_kv_heads=1, layer_dropout=0.3, rope_theta=5e5, **others)
    again = Transformer(modalities=toys(), conditions=list(CONDITIONS), **model.config())
    again.load_state_dict(model.state_dict())
    assert again.config() == model.config()
    for one, other in zip(model.eval()(toy_row(0)).values(), again.eval()(toy_row(0)).values()):
        assert torch.equal(one, other)


# Initialisation


@pytest.mark.parametrize("depth", [2, 8])
def test_weights_start_small_and_what_blocks_add_smaller(depth: int) -> None:
    model = toy_model(dim=128, depth=depth, tie_embeddings=False)
    for block in model.blocks:
        for weight in (block.attention.qkv.weight, block.mlp.gate_up.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        for weight in (block.attention.out.weight, block.mlp.down.weight):
            assert weight.std().item() == pytest.approx(0.02 / (2 * depth) ** 0.5, rel=0.05)
    for target in model.targets.values():
        assert target.embedding.std().item() == pytest.approx(0.02, rel=0.1)
        assert target.head.std().item() == pytest.approx(0.02, rel=0.1)
        assert target.length is None or target.length.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.condition_embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)
    norms = [module.weight for module in model.modules() if type(module).__name__ == "RMSNorm"]
    assert len(norms) == 4 * depth + 1 and all(bool((weight == 1).all()) for weight in norms)


def test_front_ends_keep_their_own_start() -> None:
    torch.manual_seed(0)
    assert toy_model(dim=128).front_ends["text"].table.weight.std().item() == pytest.approx(1, rel=0.1)


def test_an_untrained_model_guesses() -> None:
    row = toy_row(0, repeats=4)
    for name, logits in toy_model()(row).items():
        loss = F.cross_entropy(logits.flatten(0, 1), row.targets[name].labels.flatten())
        assert loss.item() == pytest.approx(math.log(logits.shape[-1]), abs=0.1)


# Parts


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 32), (3, 32), (2, 1, 5, 32), (0, 32)])
def test_norms_of_few_tokens_are_those_of_many(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    norm = RMSNorm(32, eps=0.1)
    norm.weight.copy_(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    few = norm(x)
    monkeypatch.setattr("anyxform.layers.SMALL", -1)
    torch.testing.assert_close(few, norm(x))
    torch.testing.assert_close(few, F.rms_norm(x, (32,), norm.weight, 0.1))


def test_queries_and_keys_are_normalised() -> None:
    """So their projections' size does not matter; that of the values does."""
    model, row = toy_model().eval(), toy_row(0)
    queries_and_keys = sum(model.blocks[0].attention.sizes[:2])
    before = model.states(row)[-1]
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[:queries_and_keys] *= 40
    torch.testing.assert_close(model.states(row)[-1], before, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[queries_and_keys:] *= 40
    assert (model.states(row)[-1] - before).abs().max() > 0.1


def test_embeddings_and_heads_are_one_or_two() -> None:
    tied, untied = toy_model(), toy_model(tie_embeddings=False)
    tables = sum(target.embedding.numel() for target in tied.targets.values())
    assert untied.num_parameters() - tied.num_parameters() == tables
    assert all(target.head is target.embedding for target in tied.targets.values())
    assert not any(target.head is target.embedding for target in untied.targets.values())


def test_logits_are_fp32_and_one_row_for_each_label() -> None:
    row = toy_row(0)
    logits = toy_model().bfloat16()(row)
    for name, modality in toys().items():
        shape = (len(row.targets[name].labels), modality.num_codebooks, modality.vocab_size + 1)
        assert logits[name].shape == shape and logits[name].dtype == torch.float32


def test_every_parameter_learns() -> None:
    """But those of the length of a target that is read left to right: it ends by itself."""
    model = toy_model(tie_embeddings=False)
    batch_loss(model, toy_row(0))[0].backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert idle == {"targets.text.length.weight", "targets.text.length.bias"}


def test_examples_do_not_see_their_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    examples = [toy_example(*pair, generator) for pair in DIRECTIONS]
    model = toy_model().eval()
    together = model.states(pack(examples, CONDITIONS, size=300))[-1]
    alone = torch.cat([model.states(pack([example], CONDITIONS))[-1] for example in examples])
    torch.testing.assert_close(together[: len(alone)], alone)


# Depth


def test_early_exits_are_what_a_shallower_model_gives() -> None:
    model, row = toy_model(depth=3).eval(), toy_row(0)
    first, second, last = model.states(row, exits=(1, 2))
    for name, logits in model(row).items():
        assert torch.equal(model.read(last, row.targets)[name], logits)
    for depth, states in ((1, first), (2, second)):
        shallow = copy.deepcopy(model)
        shallow.blocks = shallow.blocks[:depth]
        assert torch.equal(shallow.states(row)[-1], states)
    assert not torch.equal(first, second) and not torch.equal(second, last)


def test_blocks_are_skipped() -> None:
    model, row = toy_model(depth=3), toy_row(0)
    first, second, last = model.states(row, exits=(1, 2), skips=(1,))
    assert torch.equal(first, second) and not torch.equal(second, last)
    assert torch.equal(model.states(row, skips=(1, 2))[-1], first)


# Modalities


def test_a_modality_can_be_added_to_a_trained_model() -> None:
    """What the model had learnt stays as it is, to the last bit."""
    old_names = ["text", "image"]
    old_toys = {name: toys()[name] for name in old_names}
    sizes = {"dim": 32, "depth": 2, "num_heads": 2}
    old = Transformer(modalities=old_toys, conditions=[marker(name) for name in old_names], **sizes).eval()
    new = Transformer(modalities=toys(), conditions=[marker(name) for name in toys()], **sizes).eval()
    with torch.no_grad():
        for name, tensor in new.state_dict().items():
            if name in old.state_dict():
                learnt = old.state_dict()[name]
                tensor[: len(learnt)] = learnt
    foreign = {name for name in new.state_dict() if name not in old.state_dict()}
    assert foreign and all("sound" in name for name in foreign)
    row = pack([toy_example("text", "image", torch.Generator().manual_seed(0))], old.condition_ids)
    assert torch.equal(new(row)["image"], old(row)["image"])
    both = pack([toy_example("image", "sound", torch.Generator().manual_seed(0))], new.condition_ids)
    assert new(both)["sound"].isfinite().all()


# Compiled


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++"])), reason="needs a C++ compiler")
def test_compiled_blocks_give_the_same() -> None:
    plain, row = toy_model(depth=1), toy_row(0)
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    losses = []
    for model in (plain, compiled):
        loss, _ = batch_loss(model, row)
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses)
    for one, other in zip(plain.parameters(), compiled.parameters()):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)
