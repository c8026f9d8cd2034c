"""What `anyxform run --show-effort` prints of an answer: how many layers each of its tokens took."""

from collections.abc import Iterator

from anyxform.long import Made
from anyxform.modality import Modality
from anyxform.request import Generated


def shown(given: str, made: Made, modality: Modality, depth: int) -> str:
    """One line for an input: the mean, and each token's number, beside the token where it is written as text."""
    answers = list(made.answers)
    tokens = [token for answer in answers for token in _tokens(answer, modality, depth)]
    layers = [number for _, number in tokens]
    line = f"{given[:60]}: {sum(layers) / max(1, len(layers)):.2f} of {depth} layers a token"
    if drafted := sum(answer.drafted for answer in answers):
        line += f", {sum(answer.accepted for answer in answers)} of {drafted} drafts accepted"
    return f"{line}: " + " ".join(f"{text}{number:.3g}" for text, number in tokens)


def _tokens(answer: Generated, modality: Modality, depth: int) -> Iterator[tuple[str, float]]:
    layers = [float(depth)] * len(answer.codes) if answer.layers is None else answer.layers.tolist()
    for code, number in zip(answer.codes, layers):
        written = str(modality.from_codes(code[None])) if modality.literal else None
        yield ("" if written is None else f"{written!r} "), number
