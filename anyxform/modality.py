"""The contract of a modality: everything that the core knows of one, and how plug-ins are found.

A plug-in is one class, one entry point in the group ``anyxform.modalities`` and, for `anyxform train`, one YAML:

    [project.entry-points."anyxform.modalities"]
    dna = "my_package.dna:DNA"

Sources enter as continuous embeddings (`preprocess` then `front_end`); targets leave as discrete codes (`codes`,
`from_codes`). Shape letters: T tokens of one value, N tokens of a whole batch, K codebooks, A position axes, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from anyxform.field import did_you_mean

Decoding = Literal["autoregressive", "masked"]
GROUP = "anyxform.modalities"


def check_decoding(name: str, decoding: str) -> Decoding:
    """The way of decoding of the modality `name`. ValueError: there is none that is called so."""
    for known in get_args(Decoding):
        if decoding == known:
            return known
    raise ValueError(f"{name} decoding={decoding!r}: {did_you_mean(str(decoding), get_args(Decoding))}")


@dataclass(frozen=True)
class Score:
    """One value of a metric; a corpus' value is the mean weighted by `weight` (words, for a word error rate)."""

    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class Piece:
    """A part of a value that is too long for the model, itself a value that the model can read.

    Args:
        value: of the same modality.
        start, end: what it stands for, in the `unit` of its modality. The spans of a value's pieces do not overlap.
        overlap: how much of it, in that unit, the piece before holds as well; 0 where the cut says nothing twice.
        between: the text that stood, or would be written, between it and the piece before.
        offset: where in the whole its value begins, in that unit.
    """

    value: Any
    start: float = 0.0
    end: float = 0.0
    overlap: float = 0.0
    between: str = ""
    offset: float = 0.0


class Modality(ABC):
    """What a kind of data must be able to do to be trained on, generated and judged. Constructors take plain values."""

    name: ClassVar[str]
    """Identity: the ``image`` of the field ``image:noto``."""
    extensions: ClassVar[tuple[str, ...]] = ()
    """File endings that this modality owns, lower case, without a dot."""
    literal: ClassVar[bool] = False
    """Whether a command-line argument that names no file is a value of this modality."""
    position_axes: ClassVar[int] = 1
    """1 for sequences, 2 for images, 3 for video."""
    elastic: ClassVar[bool] = False
    """Whether a part that is made anew may become longer or shorter than it was."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    """Names of the metrics, the judge's included, of which less is better."""
    training_arguments: ClassVar[frozenset[str]] = frozenset()
    """The constructor's arguments that only training heeds: a run may go on with others."""
    source_arguments: ClassVar[frozenset[str]] = frozenset()
    """The constructor's arguments on which codes do not depend, such as where tokens stand."""

    unit: ClassVar[str] = ""
    """In which the spans of its pieces are measured, such as ``seconds``."""
    token_span: ClassVar[float] = 0.0
    """How much of a value, in its `unit`, each token of a source stands for; 0: there is no such measure."""
    joins: ClassVar[bool] = False
    """Whether several generated values can be joined to one: else what is longer than the model reads is refused."""
    most_repeats: ClassVar[int] = 0
    """How often in a row the same tokens may come in a generated value: more is a loop. 0: as often as they like."""

    decoding: Decoding = "autoregressive"
    """How targets are learnt, and generated unless the caller says otherwise. Codes do not depend on it."""
    vocab_size: int
    """Codes are in [0, vocab_size)."""
    num_codebooks: int = 1
    """K: codes per target token."""
    max_length: int
    """The most tokens that a target may have; `codes` refuses what is longer."""
    fixed_length: bool = False
    """Whether every target has exactly `max_length` tokens."""

    read_apart_for: tuple[str, ...] = ()
    """Target modalities whose sources `as_source_of` reads in another way."""

    # Files and values

    @abstractmethod
    def load(self, data: bytes) -> Any:
        """A file's bytes as a value in memory; a ValueError that says what is wrong with bytes it cannot read."""

    @abstractmethod
    def save(self, value: Any) -> bytes:
        """A value as the bytes of a file with the ending ``extensions[0]``."""

    def accept(self, value: Any) -> Any:
        """What a user gives in memory as a value; a ValueError names what can be given."""
        return value

    # Source side: continuous

    @abstractmethod
    def preprocess(self, value: Any, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """The tensor that the model sees, ``[n, ...]``: equal in all but its first size between values.

        Augmented only if `train`, with `generator` as the only source of chance. ValueError: too long or empty.
        """

    @abstractmethod
    def source_positions(self, tensor: Tensor) -> Tensor:
        """Positions ``[T, A]`` (int64, from 0) of the T tokens into which `front_end` turns a preprocessed tensor."""

    @abstractmethod
    def front_end(self, dim: int) -> nn.Module:
        """A fresh module ``forward(values [sum n, ...], lengths: list[int]) -> [N, dim]``.

        `values` are preprocessed tensors concatenated on their first axis, `lengths` their first sizes.
        """

    def as_source_of(self, target: str) -> "Modality":
        """What reads this modality's values where a `target` modality is asked for, by default itself.

        Its `front_end` is this one's: both must give it what it takes.
        """
        return self

    # Target side: discrete

    @abstractmethod
    def codes(self, tensor: Tensor) -> Tensor:
        """A preprocessed (not augmented) tensor as int64 codes ``[T]`` or ``[T, K]``."""

    @abstractmethod
    def code_positions(self, length: int) -> Tensor:
        """Positions ``[length, A]`` (numbers from 0) of the tokens of a target of that length."""

    @abstractmethod
    def from_codes(self, codes: Tensor) -> Any:
        """Codes ``[T]`` or ``[T, K]`` as a value."""

    # Editing, optional. A mask (bool) marks what is made anew, in the value's own units: pixels, samples, characters

    def region(self, spec: str, value: Any) -> Tensor:
        """The mask of a part of `value`, named by a short string; a ValueError says how to name one of these."""
        raise self._whole()

    def extended(self, spec: str, value: Any) -> tuple[Any, Tensor]:
        """The value made larger, as `spec` says, and the mask of what was added."""
        raise self._whole()

    def divided(self, value: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Codes ``[T]`` or ``[T, K]`` of the value, and which of its tokens ``[T]`` (bool) have nothing of the mask."""
        raise self._whole()

    def first_codes(self, value: Any, mask: Tensor) -> Tensor | None:
        """Codes ``[V]`` (bool) with which what is made anew may begin, for what is kept to stay; None: with any."""
        return None

    def paste(self, original: Any, edited: Any, mask: Tensor) -> Any:
        """The edited value where the mask is; elsewhere the original one, unchanged. ValueError: they do not fit."""
        raise self._whole()

    def _whole(self) -> ValueError:
        return ValueError(f"no part of {self.name} can be edited: it is made anew as a whole")

    # What is longer than the model reads: in use it is cut, in training refused

    def split(self, value: Any) -> list[Piece]:
        """Pieces that `preprocess` takes, in order: the value itself if it takes that; none if it says nothing."""
        return [Piece(value)]

    def merge(self, values: Sequence[Any], pieces: Sequence[Piece]) -> list[Any]:
        """The values made of overlapping pieces, of whatever modality, each without what another has said already."""
        return list(values)

    def join(self, values: Sequence[Any], pieces: Sequence[Piece]) -> Any:
        """Merged values as one. ValueError: there is none, and no value of this modality says nothing."""
        if not values:
            raise ValueError(f"the source says nothing (it is silent, say) of which {self.name} could be made")
        if len(values) > 1:
            raise ValueError(f"{len(values)} values of {self.name} cannot be joined: give something shorter")
        return values[0]

    def words_of(self, codes: Tensor) -> list[tuple[Any, int]]:
        """The parts of a value that may be found in a source by themselves, in order, and how many codes ``[T]`` each
        takes. By default the value is one."""
        return [(self.from_codes(codes), len(codes))]

    # Graphs, optional: what programs need that have none of this package's code

    @property
    def source_sizes(self) -> range:
        """The first sizes that preprocessed tensors may have. By default one, where targets have a fixed length."""
        return range(1, 2) if self.fixed_length else range(1, self.max_length + 1)

    def decoder(self) -> nn.Module | None:
        """A module ``forward(codes [T, K])``: the tensor of which `from_codes` makes its value; None: there is none."""
        return None

    def recipe(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """How to do what `preprocess` and `from_codes` do without this package: plain values, and files by name."""
        return {}, {}

    # Its tokenizer

    @abstractmethod
    def fit(self, values: Sequence[Any], *, steps: int | None = None, seed: int = 0) -> Iterator[dict[str, float]]:
        """Train the tokenizer in place, yielding progress (``step``, ``steps``, losses); `steps` if it counts any."""

    @abstractmethod
    def report(self, values: Sequence[Any]) -> dict[str, float]:
        """How good the tokenizer is on held-out values, its codebook usage included."""

    def compare(self, values: Sequence[Any], path: str) -> None:  # noqa: B027 - optional
        """Save a picture of originals beside reconstructions, if this modality can be looked at."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON values, those of the fitted tokenizer included."""

    def state(self) -> dict[str, Tensor]:
        """The fitted tokenizer's tensors, none by default."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take the tensors that `state` gave."""
        if state:
            raise ValueError(f"modality {self.name!r} has no tensors to load, but was given {sorted(state)[:3]}")

    # A published language model's tokenizer and embeddings, optional: see `anyxform.init_from`

    @classmethod
    def published(cls, folder: Path) -> dict[str, Any]:
        """The constructor's arguments that take over the tokenizer in a published language model's folder.

        None of them: this modality writes no language, or there is no such file. ValueError: it cannot be used.
        """
        return {}

    def adopt(self, front_end: nn.Module, embeddings: Tensor) -> Tensor | None:
        """Give its front end the embeddings ``[rows, D]`` of the language model of which it has the tokenizer.

        Returns which of the rows ``[V]`` are those of its codes; None where it has no such tokenizer.
        """
        return None

    # Judgement

    @abstractmethod
    def metrics(self, predicted: Any, reference: Any) -> dict[str, Score]:
        """How good one predicted value is."""

    def judge(
        self, predicted: Sequence[Any], references: Sequence[Any], texts: Sequence[str]
    ) -> dict[str, list[Score]]:
        """Verdicts of an independent, optional judge on predictions of which `texts` are the English captions.

        `references` are the true values, one for each prediction. Empty where the judge is not installed.
        """
        return {}

    @abstractmethod
    def example(self, generator: torch.Generator) -> Any:
        """A small valid value, so that tests can run every modality in every direction."""


@cache
def registry() -> dict[str, type[Modality]]:
    """Every installed modality by name. A plug-in that cannot be imported is a ValueError that names it."""
    found: dict[str, type[Modality]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            plugin = entry.load()
        except Exception as error:  # someone else's package: whatever it raises, the user must learn which one it was
            raise ValueError(
                f"the modality plug-in {entry.name!r} ({entry.value}) cannot be imported: {error}; "
                "mend or uninstall its package"
            ) from error
        if not (isinstance(plugin, type) and issubclass(plugin, Modality)):
            raise ValueError(f"the plug-in {entry.name!r} ({entry.value}) is not a subclass of anyxform's Modality")
        if plugin.name != entry.name:
            raise ValueError(
                f"the plug-in {entry.value} calls itself {plugin.name!r} but is registered as {entry.name!r}"
            )
        found[entry.name] = plugin
    return found


def get_modality(name: str) -> type[Modality]:
    """The registered class of that name."""
    known = registry()
    if name not in known:
        raise ValueError(
            f"no modality is called {name!r}: {did_you_mean(name, list(known))} (see: anyxform modalities)"
        )
    return known[name]
