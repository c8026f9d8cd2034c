"""Continuous batching: what a request gets does not depend on who shares its batch, and no row is computed in vain."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anyxform import generate as module
from anyxform.compiled import CompiledStep
from anyxform.continuous import RowCache
from anyxform.generate import generate
from anyxform.quantize import Int8Linear
from anyxform.sampling import Sampling
from tests.toy import toys
from tests.toy_generation import decided_model, toy_request

SOURCES = [("image",), ("sound",), (), ("text", "image"), ("text",), ("sound", "sound")]


@pytest.fixture(scope="module")
def model():
    return decided_model()


def requests(count=14, lengths=None):
    """Texts from sources of several kinds and lengths; with `lengths`, the last token of each is known."""
    made = [toy_request(SOURCES[n % len(SOURCES)], ("text:fr", "text")[n % 2], seed=n) for n in range(count)]
    if lengths is None:
        return made
    known = [torch.full((length, 1), 3) for length in lengths]
    return [replace(it, known=own, keep=torch.arange(len(own)) == len(own) - 1) for it, own in zip(made, known)]


@pytest.fixture
def steps(monkeypatch):
    """Rows of each step, and the memory in which their keys stand."""
    seen, advance = [], RowCache.advance

    def noted(self, *arguments):
        seen.append((len(self), self.keys[0].data_ptr()))
        advance(self, *arguments)

    monkeypatch.setattr(RowCache, "advance", noted)
    return seen


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"guidance": 2.0}, {"no_repeat": 2, "temperature": 0.5}])
def test_a_request_gets_what_it_gets_alone(model, options, steps):
    asked = requests()
    alone = [generate(model, toys(), [it], Sampling(seed=n, **options))[0] for n, it in enumerate(asked)]
    assert len({len(it.codes) for it in alone}) > 3  # they end at different places
    for batch_size in (3, 5, 64):
        steps.clear()
        together = generate(model, toys(), asked, Sampling(**options), batch_size=batch_size)
        assert [it.codes.tolist() for it in together] == [it.codes.tolist() for it in alone]
        assert [it.logprob for it in together] == pytest.approx([it.logprob for it in alone], abs=1e-3)
        assert max(rows for rows, _ in steps) == min(batch_size, len(asked)) * (2 if "guidance" in options else 1)


def test_a_row_is_given_away_as_soon_as_its_request_has_ended(model, steps):
    """Every token but the last is read once, and the batch is full as long as anyone waits."""
    lengths = [2, 30, 3, 9, 2, 17, 4, 5, 25, 2]
    answers = generate(model, toys(), requests(len(lengths), lengths), Sampling(), batch_size=3)
    assert [len(it.codes) for it in answers] == lengths
    rows = [rows for rows, _ in steps]
    assert sum(rows) == sum(lengths) - len(lengths)
    ends = [place for place, count in enumerate(rows) if count < 3]
    assert ends == list(range(ends[0], len(rows)))  # only when nobody waits any more
    assert rows == sorted(rows, reverse=True)


def test_the_cache_is_allocated_once(model, steps, monkeypatch):
    built, begin = [], RowCache.__init__
    monkeypatch.setattr(
        RowCache, "__init__", lambda self, *arguments: built.append(arguments) or begin(self, *arguments)
    )
    generate(model, toys(), requests(), Sampling(temperature=1.0), batch_size=4)
    assert len(built) == 1
    assert len(steps) > 20 and len({memory for _, memory in steps}) == 1


def test_samples_of_one_request_share_its_prefix(model, monkeypatch):
    computed, prefill = [], module.prefill
    monkeypatch.setattr(module, "prefill", lambda *arguments: computed.append(len(arguments[1])) or prefill(*arguments))
    first, second = toy_request(["image"], "text", 1), toy_request(["text"], "text", 2)
    samples = [replace(first, seed=seed) for seed in range(6)] + [replace(second, seed=seed) for seed in range(3)]
    together = generate(model, toys(), samples, Sampling(temperature=1.0), batch_size=4)
    assert sum(computed) == 2
    alone = [generate(model, toys(), [it], Sampling(temperature=1.0))[0] for it in samples]
    assert [it.codes.tolist() for it in together] == [it.codes.tolist() for it in alone]
    assert len({str(it.codes.tolist()) for it in together}) > 4


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))


def test_groups_of_heads_share_keys_and_values_uncopied(model):
    """4 heads, 2 of keys and values: the kernel takes them as they are."""
    assert model.config()["num_heads"] == 2 * model.config()["num_kv_heads"]
    with Operations() as seen:
        generate(model, toys(), requests(3), Sampling())
    assert "_scaled_dot_product_flash_attention_for_cpu" in seen.names
    assert not {"repeat_interleave", "repeat"} & seen.names


def test_where_nothing_is_drawn_nothing_is_seeded(model, monkeypatch):
    asked = requests(2)
    monkeypatch.setattr(torch, "Generator", None)
    assert generate(model, toys(), asked, Sampling(temperature=0.0))


@pytest.mark.parametrize("graphs", [False, True])
def test_a_compiled_step_is_compiled_for_few_sizes(graphs):
    """Powers of two of rows, whatever the number of requests; for graphs, the memory is that of the call before."""
    model, compiled, asked = decided_model(), list[int](), requests(7)
    expected = [generate(model, toys(), asked[:count], Sampling()) for count in range(1, 8)]

    def backend(graph, inputs):
        compiled.append(1)
        return graph.forward

    model.decode_step = CompiledStep(model, backend=backend)
    model.decode_step.graphs = graphs
    found = [generate(model, toys(), asked[:count], Sampling()) for count in range(1, 8)]
    for one, other in zip(found, expected):
        assert [it.codes.tolist() for it in one] == [it.codes.tolist() for it in other]
    assert len(getattr(model.decode_step.of_thread, "taken", {})) == (4 if graphs else 0)
    assert len(compiled) == 4, "of 1, 2, 4 and 8 rows"


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}])
def test_a_compiled_step_gives_the_same(options):
    """Of fixed shapes, and rows that are not in use; by the compiler's front end, as its back end takes long."""
    model, asked = decided_model(), requests(6)
    expected = generate(model, toys(), asked, Sampling(**options), batch_size=3)
    model.decode_step = CompiledStep(model, backend="eager")
    found = generate(model, toys(), asked, Sampling(**options), batch_size=3)
    assert [it.codes.tolist() for it in found] == [it.codes.tolist() for it in expected]


COMPILER = any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++"]))


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
def test_the_compilers_loops_give_the_same(monkeypatch, tmp_path):
    """Really compiled, of one row, where all products are sums of its own: what is answered, and how likely it is."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, asked = decided_model(depth=1), requests(2)
    expected = [generate(model, toys(), [it], Sampling())[0] for it in asked]
    model.decode_step = CompiledStep(model)
    found = [generate(model, toys(), [it], Sampling())[0] for it in asked]
    assert [it.codes.tolist() for it in found] == [it.codes.tolist() for it in expected]
    assert [it.logprob for it in found] == pytest.approx([it.logprob for it in expected], abs=1e-3)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_compiled_product_with_int8_weights_is_that_of_its_codes(tokens):
    """Of one token exactly, by the compiler's front end; of more with inputs in bf16, as without a compiler."""
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(48, 32)), torch.randn(tokens, 1, 32)
    found = torch.compile(layer, backend="eager")(x)
    exact = x @ (layer.weight.float() * layer.scale.float()[:, None]).T
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 if tokens == 1 else 0.1)
    assert torch.equal(found, layer(x)) == (tokens > 1)
