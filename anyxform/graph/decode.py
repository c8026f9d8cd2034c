"""Decoding by graphs, in numpy, as `anyxform.generate` does where nothing is left to chance.

Letters: T tokens, K codebooks, V codes; logits have V + 1 outputs, the last of which is the end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyxform.graph.files import Graph
from anyxform.sampling import GUIDANCE, SCHEDULES, Sampling


@dataclass(frozen=True)
class Answer:
    """Codes ``[T, K]``, and the logits from which they were chosen: left to right ``[T or T + 1, K, V + 1]``, masked
    those of the first step ``[T, K, V + 1]``, without guidance.
    """

    codes: np.ndarray
    logits: np.ndarray


def left_to_right(prefill: Graph, step: Graph, target: Mapping[str, Any], sources: Sequence[np.ndarray]) -> Answer:
    """The likeliest code after the likeliest code, until the end."""
    keys, values, length, first, logits = prefill(*sources)
    end, longest = target["vocab_size"], target["max_length"]
    codes, seen = np.zeros((0, target["num_codebooks"]), dtype=np.int64), [logits]
    for place in range(longest):
        may_end = place > 0 and not target["fixed_length"]
        chosen = logits[:, : end + may_end].argmax(axis=-1)
        if (chosen == end).any():
            break
        codes = np.concatenate([codes, chosen[None]])
        if place + 1 == longest:
            break
        logits, new_keys, new_values = step(codes[-1:], np.array(place), length, first, keys, values)
        keys[:, :, length + place], values[:, :, length + place] = new_keys[:, :, 0], new_values[:, :, 0]
        seen.append(logits)
    return Answer(codes, np.stack(seen))


def masked(
    prefill: Graph,
    parallel: Graph,
    target: Mapping[str, Any],
    nothing: Mapping[str, np.ndarray],
    sources: Sequence[np.ndarray],
) -> Answer:
    """All tokens at once, again and again, the most certain ones kept."""
    *cache, tokens = _opened(prefill(*sources), target)
    hidden_id, steps, guidance = target["vocab_size"], Sampling().steps, GUIDANCE["masked"]
    share = SCHEDULES[Sampling().schedule]
    codes = np.full((tokens, target["num_codebooks"]), hidden_id)
    hidden, seen = np.ones(tokens, dtype=bool), None
    for number in range(1, steps + 1):
        (logits,) = parallel(codes, *cache)
        seen = logits if seen is None else seen
        (without,) = parallel(codes, *(nothing[name] for name in ("length", "first", "keys", "values")))
        logits = (without + guidance * (logits - without))[..., :hidden_id]
        chosen, certainty = logits.argmax(axis=-1), _log_softmax(logits).max(axis=-1)
        codes = np.where(hidden[:, None], chosen, codes)
        remain = min(math.floor(tokens * share(number / steps)), int(hidden.sum()) - 1)
        if number == steps or remain <= 0:
            break
        rank = np.where(hidden, certainty.mean(axis=-1), np.inf).argsort(kind="stable").argsort(kind="stable")
        hidden = rank < remain
        codes = np.where(hidden[:, None], hidden_id, codes)
    assert seen is not None
    return Answer(codes, seen)


def _opened(outputs: Sequence[np.ndarray], target: Mapping[str, Any]) -> list[Any]:
    """Length, first, keys and values of a prefix, and the number of tokens that it asks for."""
    keys, values, length, first, *lengths = outputs
    tokens = int(lengths[0][1:].argmax()) + 1 if lengths else target["max_length"]
    return [length, first, keys, values, tokens]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
