"""Self-speculative decoding: the first blocks draft tokens, all verify them at once (LayerSkip, arXiv 2404.16710).

What comes out is what plain decoding would give: at temperature 0 the same tokens (but for ties within rounding), else
tokens of the same distribution. A draft has gone through the first blocks when it is verified: they are not run again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from anyxform.sampling import Sampling, draw, log_probability, truncate
from anyxform.stream import Stream, Task


@dataclass(frozen=True)
class Speculated:
    """Codes ``[T, K]``, their log-probability with that of the end, and how many drafts were made and accepted."""

    codes: Tensor
    logprob: float
    drafted: int
    accepted: int


def draft_blocks(options: Sampling, depth: int) -> int:
    """How many of a model's blocks draft: as many as the options say, else a third."""
    return options.draft_layers or max(1, round(depth / 3))


def speculate(stream: Stream, task: Task, *, draft: int, blocks: int) -> Speculated:
    """Decode left to right, `draft` tokens ahead with the first `blocks` blocks. Given tokens are never in doubt."""
    depth, total, drafted, accepted = len(stream.model.blocks), 0.0, 0, 0
    codes = task.given[:0]
    states, guesses = stream.marker(range(depth)), list[_Guess]()
    while True:
        for number, logits in enumerate(task.logits(states)):
            guess = guesses[number] if number < len(guesses) else None
            chosen, logprob = _decided(task, logits, codes, guess)
            total += logprob
            fits = guess is not None and torch.equal(chosen, guess.codes)
            accepted += guess is not None and guess.logits is not None and fits
            if task.ends(chosen):
                return Speculated(codes, total, drafted, accepted)
            codes = torch.cat([codes, chosen[None]])
            if len(codes) == task.length:
                return Speculated(codes, total, drafted, accepted)
            if not fits:
                break
        first = len(codes) - 1
        guesses = _guess(stream, task, codes, draft, blocks)
        drafted += sum(guess.logits is not None for guess in guesses)
        states = stream.run(range(blocks, depth), slice(first, len(stream.blocks)))


@dataclass(frozen=True)
class _Guess:
    """Codes ``[K]`` of a draft, and the permitted logits that it was drawn from; None: it is given."""

    codes: Tensor
    logits: Tensor | None


def _guess(stream: Stream, task: Task, codes: Tensor, draft: int, blocks: int) -> list[_Guess]:
    """Drafts behind `codes`, whose last token is in no block yet; the last draft, too, is put into the first blocks."""
    guesses = list[_Guess]()
    while True:
        place = len(codes)
        stream.put(task.embed(codes[-1:]), place - 1)
        states = stream.run(range(blocks), slice(place - 1, place))
        if len(guesses) == draft:
            return guesses
        if task.fixed(place):
            guesses.append(_Guess(task.given[place], None))
        else:
            logits = task.permit(task.logits(states)[0], codes)
            guesses.append(_Guess(task.choose(logits), logits))
        codes = torch.cat([codes, guesses[-1].codes[None]])
        if task.ends(guesses[-1].codes) or len(codes) == task.length:
            return guesses


def _decided(task: Task, logits: Tensor, codes: Tensor, guess: _Guess | None) -> tuple[Tensor, float]:
    """The codes ``[K]`` of the token behind `codes`, read from all blocks, and their log-probability; 0 if given."""
    if task.fixed(len(codes)):
        return task.given[len(codes)], 0.0
    logits = task.permit(logits, codes)
    if guess is None or guess.logits is None or task.temperature == 0:
        chosen = task.choose(logits)
    else:
        p, q = (distribution(it, task.temperature, task.options) for it in (logits, guess.logits))
        chosen = verified(p, q, guess.codes, task.uniform(2))
    return chosen, float(log_probability(logits, chosen).sum())


def distribution(logits: Tensor, temperature: float, options: Sampling) -> Tensor:
    """The probabilities by which codes are drawn from logits ``[…, V]``."""
    return truncate(logits / temperature, options.top_k, options.top_p).softmax(dim=-1)


def verified(p: Tensor, q: Tensor, drafted: Tensor, uniform: Tensor) -> Tensor:
    """Codes ``[K]`` distributed as `p` ``[K, V]``, given drafts drawn from `q`, by uniform numbers ``[2, K]``.

    A draft stays with the probability min(1, p/q); in its place comes a draw from what `p` has more than `q`
    (arXiv 2211.17192). Codebooks are independent given what stands before them, so each is decided by itself.
    """
    stays = uniform[0] * _at(q, drafted) < _at(p, drafted)
    more = (p - q).clamp(min=0)
    more = torch.where((more > 0).any(dim=-1, keepdim=True), more, p)  # rounding alone rejects where both are equal
    return torch.where(stays, drafted, draw(more.log(), 1.0, Sampling(), uniform[1]))


def _at(probabilities: Tensor, codes: Tensor) -> Tensor:
    return probabilities.gather(-1, codes[:, None])[:, 0]
