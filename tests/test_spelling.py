"""What source tokens spell: prefix probabilities against sums over all paths, joint search against all sequences."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from anyxform import beams
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.request import Request
from anyxform.sampling import Sampling
from anyxform.spelling import Prefixes, likeliest, spelt
from tests.test_beams import ENOUGH, SEEDS, TINY, best_of, every_sequence, found, tiny_model, tiny_request

V, T = 3, 5
PATHS = list(product(range(V + 1), repeat=T))


def log_probabilities(seed=0):
    return (2 * torch.randn(T, V + 1, generator=torch.Generator().manual_seed(seed))).log_softmax(dim=-1)


def collapsed(path):
    return tuple(code for place, code in enumerate(path) if code < V and path[place - 1 : place] != (code,))


def probability(log_p, codes, begins=False):
    """Of all paths that spell these codes, or begin so."""
    fitting = [path for path in PATHS if (collapsed(path)[: len(codes)] if begins else collapsed(path)) == codes]
    return float(log_p[range(T), fitting].sum(dim=1).exp().sum()) if fitting else 0.0


@pytest.mark.parametrize("codes", [(0,), (1, 2), (1, 1), (2, 0, 2), (0, 0, 1), (2, 2, 2), (1, 1, 1, 1)])
def test_what_begins_so_is_as_likely_as_all_its_paths(codes):
    log_p = log_probabilities()
    prefixes, own = Prefixes(log_p, weight=1.0), torch.zeros(1, V + 1)
    for length in range(len(codes) + 1):
        scores, prefix = prefixes.scores(own, V)[0].exp(), codes[:length]
        for code in range(V):
            assert float(scores[code]) == pytest.approx(probability(log_p, (*prefix, code), begins=True), abs=1e-6)
        assert float(scores[V]) == pytest.approx(probability(log_p, prefix), abs=1e-6)
        if length < len(codes):
            prefixes.go_on(torch.zeros(1, dtype=torch.long), torch.tensor([codes[length]]))


def test_prefixes_are_kept_apart():
    log_p = log_probabilities(1)
    together = Prefixes(log_p, 0.5)
    together.go_on(torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 2]))
    together.go_on(torch.tensor([2, 0]), torch.tensor([2, 1]))
    for row, codes in enumerate([(2, 2), (0, 1)]):
        alone = Prefixes(log_p, 0.5)
        for code in codes:
            alone.go_on(torch.zeros(1, dtype=torch.long), torch.tensor([code]))
        own = torch.randn(2, V + 1)
        torch.testing.assert_close(together.scores(own, V)[row], alone.scores(own[row : row + 1], V)[0])


def test_what_is_heard_is_tried_even_where_the_model_would_not_say_it():
    log_p = torch.full((T, V + 1), -20.0)
    log_p[:, V], log_p[2] = 0.0, torch.tensor([-20.0, 0.0, -20.0, -20.0])
    own = torch.tensor([[-0.1, -9.0, -8.0, -3.0]])
    scores = Prefixes(log_p, 0.5).scores(own, 1)[0]
    assert scores.argmax() == 1 and scores[2] == -torch.inf and scores[0] > -torch.inf


def test_the_likeliest_path_is_read_at_once():
    log_p = F.one_hot(torch.tensor([3, 0, 0, 3, 0, 1, 1, 3, 3]), V + 1).float()
    codes, total = likeliest(log_p)
    assert codes.tolist() == [0, 0, 1] and total == 9


def mixed(model, request, weight):
    """Every sequence's log-probability, that of the model and that of the source's tokens, mixed."""
    (log_p,) = spelt(model, TINY, [request])
    result = {}
    for codes, (own, choices) in every_sequence(model, request).items():
        lengths = torch.tensor([len(log_p)]), torch.tensor([len(codes)])
        said = -float(F.ctc_loss(log_p[:, None], torch.tensor([codes]), *lengths, blank=V, reduction="sum"))
        result[codes] = ((1 - weight) * own + weight * said, choices)
    return result


@pytest.mark.parametrize("weight", [0.2, 0.7])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_of_all_by_both(weight, length_penalty):
    differs = 0
    for seed in SEEDS:
        model, request = tiny_model(seed), tiny_request(seed)
        sequences = mixed(model, request, weight)
        options = {"align_weight": weight, "num_beams": ENOUGH, "length_penalty": length_penalty}
        codes, log_p = found(model, request, **options)
        assert codes == best_of(sequences, length_penalty)
        assert log_p == pytest.approx(every_sequence(model, request)[codes][0], abs=1e-4)
        differs += codes != found(model, request, num_beams=ENOUGH, length_penalty=length_penalty)[0]
    assert differs > 0


def test_stopping_early_changes_nothing(monkeypatch):
    """No sequence is longer than its source."""
    options = {"align_weight": 0.5, "num_beams": 2}
    early = [found(tiny_model(seed), tiny_request(seed), **options) for seed in SEEDS]
    monkeypatch.setattr(beams._Beams, "_settled", lambda _: False)
    assert [found(tiny_model(seed), tiny_request(seed), **options) for seed in SEEDS] == early


def test_one_beam_may_be_too_long_for_its_source():
    for seed in SEEDS:
        request = tiny_request(seed)
        assert 1 <= len(found(tiny_model(seed), request, align_weight=0.5)[0]) <= len(request.sources[0].positions)


def test_the_spelling_alone_is_read_without_a_search():
    for seed in SEEDS:
        model, request = tiny_model(seed), tiny_request(seed)
        (log_p,) = spelt(model, TINY, [request])
        codes, total = likeliest(log_p)
        assert found(model, request, align_weight=1) == (tuple(codes.tolist()), pytest.approx(total, abs=1e-4))


def test_without_a_source_nothing_is_spelt():
    with pytest.raises(ValueError, match=r"align_weight=0\.5 is not possible without a source"):
        generate(tiny_model(0), TINY, [Request((), Field("text", "fr"))], Sampling(align_weight=0.5))
