"""Every backend equals the dense-mask definition, forward and gradients."""

import random

import pytest
import torch

from anyxform.attention import BLOCK, DenseAttention, FlexAttention, SegmentAttention, _near, seen_blocks, seen_spans
from anyxform.causal import LENGTHS, causal_backward
from anyxform.sequence import Segments, may_attend
from tests.toy_training import toy_model, toy_row

SEGMENTS = Segments(
    starts=[0, 9, 14, 20], prefixes=[4, 0, 6, 3], targets=[5, 5, 0, 4], causal=[True, True, True, False]
)
SIZE = 30  # three tokens of padding


def random_inputs(heads=4, kv_heads=2, dtype=torch.float64, size=SIZE, head_dim=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(size, heads, head_dim), (size, kv_heads, head_dim), (size, kv_heads, head_dim)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def real(x):
    return x[: SEGMENTS.starts[-1] + SEGMENTS.lengths[-1]]


def test_the_definition_on_a_segment_written_by_hand():
    causal = may_attend(Segments([0], [2], [2], [True]), 5)
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert causal.int().tolist() == expected
    full = may_attend(Segments([0], [2], [2], [False]), 4)
    assert full.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_nothing_is_seen_across_segments():
    mask = may_attend(SEGMENTS, SIZE)
    assert not mask[9:, :9].any()
    assert not mask[:9, 9:].any()


def assert_the_definition(segments, size, kv_heads):
    """Outputs and gradients by segments are those of the definition in fp64, to a few roundings of the largest."""
    given, tokens, found = random_inputs(kv_heads=kv_heads, size=size), sum(segments.lengths), []
    for backend, dtype in ((SegmentAttention, torch.float32), (DenseAttention, torch.float64)):
        inputs = [x.detach().float().to(dtype).requires_grad_() for x in given]
        output = backend(segments, size)(*inputs)[:tokens]
        (output * torch.arange(output.numel(), dtype=dtype).view_as(output).cos()).sum().backward()
        found.append([output.detach(), *(x.grad[:tokens] for x in inputs)])
    for one, exact in zip(*found):
        assert (one.dtype, exact.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(one.double(), exact, rtol=0, atol=2e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_segment_loop_equals_the_definition(kv_heads):
    assert_the_definition(SEGMENTS, SIZE, kv_heads)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("large", [0, 2**16])
def test_segments_in_bf16_are_the_definition_rounded(monkeypatch, kv_heads, large):
    """With all weights in memory, and by the kernel."""
    monkeypatch.setattr("anyxform.attention.LARGE", large)
    inputs = [x.detach().bfloat16().requires_grad_() for x in random_inputs(kv_heads=kv_heads)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    outputs = [real(SegmentAttention(SEGMENTS, SIZE)(*inputs)), real(DenseAttention(SEGMENTS, SIZE)(*exact))]
    assert outputs[0].dtype == torch.bfloat16
    for output in outputs:
        output.sum().backward()
    pairs = [outputs, *([x.grad[:24], y.grad[:24]] for x, y in zip(inputs, exact))]
    for found, expected in pairs:
        torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)


def test_segments_of_about_one_length_go_together():
    """And what is long with its own length alone."""
    lengths = [40, 3, 45, 0, 41, 400, 399, 400, 6, 60]
    assert _near(lengths) == [[5, 7], [6], [9], [2, 4, 0], [8, 1]]
    assert _near([]) == [] and _near([0, 0]) == []


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("prefixes", [range(1, 9), [0]])
def test_many_segments_equal_the_definition(kv_heads, prefixes):
    """Pictures, texts alone, sources alone; padded or not. What is padding changes no gradient."""
    shapes = [(p, t, causal) for p in prefixes for t in (0, 3, 5, 20) for causal in (True, False) if p + t]
    random.Random(0).shuffle(shapes)
    parts = list(zip(*shapes))
    lengths = [p + t for p, t, _ in shapes]
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    segments, size = Segments(starts[:-1], *map(list, parts)), starts[-1] + 7
    assert_the_definition(segments, size, kv_heads)
    assert len(SegmentAttention(segments, size).groups) < len(shapes) / 2


def test_a_row_of_padding_alone_passes_through():
    inputs = random_inputs(dtype=torch.float32)
    assert torch.equal(SegmentAttention(Segments([], [], [], []), SIZE)(*inputs), inputs[0])


@pytest.mark.parametrize("prefix", [0, 4])
def test_segments_of_one_shape_equal_the_definition(prefix):
    assert_the_definition(Segments([0, 10, 20], [prefix] * 3, [10 - prefix] * 3, [True] * 3), SIZE, kv_heads=2)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [LENGTHS[0], LENGTHS[0] + 77])
def test_texts_of_middle_length_equal_the_definition(kv_heads, length):
    """Whose gradient is computed in blocks of queries, the last one of them short."""
    assert_the_definition(Segments([0, length], [0, 0], [length] * 2, [True] * 2), 2 * length, kv_heads)


def test_the_gradient_in_blocks_is_an_operator_as_torch_wants_it():
    """Also with shapes alone, as what is planned is counted."""
    q, k, v = (torch.randn(2, heads, 130, 8) for heads in (4, 2, 2))
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True)
    torch.library.opcheck(causal_backward, (torch.randn_like(q), q, k, v, output, sums))


def test_flex_mask_equals_the_definition():
    inputs = [x.detach().float() for x in random_inputs()]
    expected = real(DenseAttention(SEGMENTS, SIZE)(*inputs))
    torch.testing.assert_close(real(FlexAttention(SEGMENTS, SIZE, torch.device("cpu"))(*inputs)), expected)


def random_segments(count: int, longest: int) -> tuple[Segments, int]:
    """So many segments, and a size with room for padding."""
    lengths = torch.randint(longest, (2, count))
    prefixes, targets = (part.tolist() for part in lengths)
    starts = [0, *lengths.sum(dim=0).cumsum(0).tolist()]
    return Segments(starts[:-1], prefixes, targets, (torch.rand(count) < 0.5).tolist()), starts[-1] + 90


@pytest.mark.parametrize("count, longest", [(40, 30), (5, 900), (1, 5), (0, 1)])
def test_spans_and_blocks_are_those_of_the_definition(count, longest):
    torch.manual_seed(count)
    segments, size = random_segments(count, longest)
    mask, (first, last) = may_attend(segments, size), seen_spans(segments, size)
    column = torch.arange(size)
    assert torch.equal((column >= first[:, None]) & (column <= last[:, None]), mask)
    some, whole = seen_blocks(first, last)
    blocks = -(-size // BLOCK)
    padded = torch.nn.functional.pad(mask.float(), (0, blocks * BLOCK - size) * 2)
    shares = padded.view(blocks, BLOCK, blocks, BLOCK).mean(dim=(1, 3))
    assert torch.equal(shares == 1, whole)
    assert (some | whole)[shares > 0].all() and not (some & whole).any()
    assert (some & (shares == 0)).sum() <= 2 * count  # a span's ends alone can be more than there is


@torch.no_grad()
def test_a_whole_block_with_flex_is_compiled_once(monkeypatch):
    """As on CUDA, but for the kernels: traced by the compiler, run by torch; on CPUs flex has no backward."""
    from torch._dynamo.utils import counters

    plain, traced = (toy_model(layer_dropout=0.0).eval() for _ in range(2))
    for block in traced.blocks:
        block.compiled = torch.compile(block._forward, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr("anyxform.model.packed_attention", FlexAttention)
    graphs = counters["stats"]["unique_graphs"]
    for number in range(3):
        row = toy_row(number)
        with monkeypatch.context() as context:
            context.setattr("anyxform.model.packed_attention", lambda *given: SegmentAttention(*given[:2]))
            expected = plain(row)
        torch.testing.assert_close(traced(row), expected, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_on_cuda_equals_the_definition_with_gradients():
    torch.manual_seed(0)
    for segments, size in (random_segments(40, 30), random_segments(5, 900), (SEGMENTS, SIZE)):
        outputs, gradients = [], []
        for backend in (DenseAttention(segments, size), FlexAttention(segments, size, torch.device("cuda"))):
            given = random_inputs(size=size, head_dim=16)  # flex wants 16 at least
            inputs = [x.detach().float().cuda().requires_grad_() for x in given]
            output = backend(*inputs)
            output.square().sum().backward()
            outputs.append(output.detach())
            gradients.append([x.grad for x in inputs])
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
