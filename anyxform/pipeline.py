"""A checkpoint as a callable: ``ax = anyxform.load("runs/mine"); ax("cat.png", to="text:fr")``.

Everything that is given, files, strings and values in memory, goes through the same few steps: find its modality, read
it, ask the model, turn codes into a value.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch

from anyxform import checkpoint
from anyxform.align import with_words
from anyxform.candidates import Answered, Candidate, Rank, check_rank, draw
from anyxform.candidates import rank as rank_by
from anyxform.compiled import CompiledStep
from anyxform.data import share_of, source
from anyxform.edit import Round, edit
from anyxform.field import Direction, Field, did_you_mean
from anyxform.long import Job, Made, Segment, cut, perform, pooled
from anyxform.modality import Modality
from anyxform.model import Transformer
from anyxform.quantize import Dtype, prepare
from anyxform.request import Request, seeded
from anyxform.routes import best_route, read_table
from anyxform.sampling import Options, Sampling, sampling_of
from anyxform.sequence import marker

STARTER = "starter"
AHEAD = 4
"""Batches of inputs that are answered together, so that a row whose answer is done goes to the next input."""
SHIPPED = Path(__file__).parent / "pretrained"


class Pipeline:
    """A model and its modalities, ready to convert anything into anything.

    Args:
        model: on the device where it is to run.
        modalities: by name.
        path: where the checkpoint was read from, for messages.
        facts: what config.json of the checkpoint says about training.
    """

    def __init__(
        self,
        model: Transformer,
        modalities: Mapping[str, Modality],
        path: Path | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.modalities = model, modalities
        self.path, self.facts = path, dict(facts or {})

    def __call__(
        self,
        *given: Any,
        to: str,
        via: str | None = None,
        n: int = 1,
        rank: Rank = "back",
        batch_size: int = 64,
        **options: Unpack[Options],
    ) -> Any:
        """Convert what is given, one source or several together, to a value of the field `to` (``text:fr``).

        A source is the path of a file, whose ending says its modality; a text; or anything beside its modality's name:
        ``("image", "photo.dat")``, ``("image", picture)``, ``("audio", (samples, rate))``, a file's bytes;
        ``("text", "a.txt")`` is a text. One of the sources may be of any length, if its modality can be cut and the
        target's joined. A ValueError says what cannot be read or asked for.

        `via`: a field by way of which to go, first to it and from it on; ``auto``: whatever the evaluation table of the
        checkpoint says is better. `n`: candidates, of which the best by `rank` is taken (see `candidates`).
        `batch_size`: pieces of a long input, or candidates, that are answered together. `options` are those of
        `anyxform.sampling.Sampling`; on the way to `via` they are the defaults.
        """
        check_rank(rank)
        if n != 1:
            return self.candidates(*given, to=to, via=via, n=n, rank=rank, batch_size=batch_size, **options)[0].value
        return self._made(given, to, via, options, batch_size).value

    def segments(
        self, *given: Any, to: str, words: bool = False, batch_size: int = 64, **options: Unpack[Options]
    ) -> list[Segment]:
        """The same piece by piece, each with its span in the source: seconds of a recording, characters of a text.

        `words`: with those of each, for models that were trained with `train.align_weight`.
        """
        return self._made(given, to, None, options, batch_size, words).segments

    def _made(
        self,
        given: Sequence[Any],
        to: str,
        via: str | None,
        options: Mapping[str, Any],
        batch_size: int,
        words: bool = False,
    ) -> Made:
        seed = sampling_of(options).seed
        (direction,), (values,) = self._asked(given, to, via, seed)
        if words:
            self.check_words(direction)
        return self.perform([self.job(direction, values, seed)], batch_size=batch_size, words=words, **options)[0]

    def _asked(
        self, given: Sequence[Any], to: str, via: str | None, seed: int
    ) -> tuple[list[Direction], list[Sequence[Any]]]:
        """The direction and the sources' values, from `via` on."""
        if not given:
            raise ValueError("there is nothing to convert: give a file, a text or a value")
        target = self.field(to)
        sources = [self.read(it) for it in given]
        direction = Direction(tuple(Field(name) for name, _ in sources), target)
        values = [value for _, value in sources]
        return self.onward([direction], [values], [self.route(direction, via)], seeds=[seed])

    def candidates(
        self,
        *given: Any,
        to: str,
        via: str | None = None,
        n: int = 4,
        rank: Rank = "back",
        batch_size: int = 64,
        **options: Unpack[Options],
    ) -> list[Candidate]:
        """Up to `n` different answers with their scores, the best first.

        `rank`: ``back`` by how likely what was given is, given the answer; ``own`` by how likely the answer is, given
        that; ``both`` by their product.
        """
        asked = self._asked(given, to, via, sampling_of(options).seed)
        return self.ranked(*asked, n=n, rank=rank, batch_size=batch_size, **options)[0]

    def learnt(self, options: Sampling, requests: Sequence[Request]) -> Sampling:
        """The options, if this model has learnt the ways of decoding that they ask for; else a ValueError."""
        facts = self.facts.get("facts")
        if not facts:  # of a model that is from no checkpoint nothing is known
            return options
        for pair in sorted({(it.sources[0].modality, it.target.modality) for it in requests if it.sources}):
            self.check_spelling(options, *pair)
        for name in sorted({request.target.modality for request in requests}):
            if share_of(facts.get("other_decoding") or 0.0, name):
                continue
            own = self.modalities[name].decoding
            wanted = f"refine={options.refine}" if options.refine and own == "autoregressive" else ""
            if options.decoding not in (None, own):
                wanted = f"decoding={options.decoding}"
            if wanted:
                raise ValueError(
                    f"{wanted} is not possible: this model has learnt {name} in the {own} way alone; train it with "
                    f"data.other_decoding={{{name}: 0.2}}, say"
                )
        return options

    def check_spelling(self, options: Sampling, source: str, target: str) -> None:
        """ValueError: the options go by what a source spells, and this model's spells no such target."""
        if options.align_weight:
            self._check_spelt(source, target, f"align_weight={options.align_weight:g} is not possible")

    def check_words(self, direction: Direction) -> None:
        """ValueError: this model cannot tell when the words of a target are said."""
        source, what = self.modalities[direction.sources[0].modality], f"words are not possible for {direction}"
        if len(direction.sources) > 1 or not source.token_span:
            raise ValueError(f"{what}: they are of one recording, or something else that has time")
        self._check_spelt(source.name, direction.target.modality, what)

    def _check_spelt(self, source: str, target: str, what: str) -> None:
        """ValueError: tokens of `source` spell no `target`; of a model from no checkpoint nothing is known."""
        facts = self.facts.get("facts")
        if not facts:
            return
        learnt = {tuple(side.partition(":")[0] for side in it.split(">")) for it in facts.get("aligned", ())}
        if (source, target) not in learnt:
            known = ", ".join(sorted(" to ".join(pair) for pair in learnt)) or "nothing"
            raise ValueError(
                f"{what}: this model has learnt where words are from {known}; "
                "train it with train.align_weight=2 and its transcripts in data.aligned"
            )

    def route(self, direction: Direction, via: str | None) -> Field | None:
        """The field by way of which to go; None: directly. ValueError: `via` is unknown, or ``auto`` and no table."""
        if via != "auto":
            return None if via is None else self.field(via)
        trained = map(Direction.parse, self.facts.get("directions", ()))
        return best_route(self.judged(), direction, trained)

    def judged(self) -> Sequence[Mapping[str, Any]]:
        """The rows of the evaluation table. ValueError: there is none."""
        if self.path is None:
            raise ValueError("via=auto reads the evaluation table of a checkpoint, and this model is from none")
        return read_table(self.path)

    def onward(
        self,
        directions: Sequence[Direction],
        sources: Sequence[Sequence[Any]],
        via: Sequence[Field | None],
        *,
        seeds: Sequence[int],
        **options: Any,
    ) -> tuple[list[Direction], list[Sequence[Any]]]:
        """What is left to do: where `via` is a field, from it on, with what was made on the way there.

        `options` are those of the way there, `seeds` each one's.
        """
        on, values = list(directions), list(sources)
        through = {number: field for number, field in enumerate(via) if field is not None}
        if not through:
            return on, values
        jobs = [
            self.job(replace(directions[number], target=field), sources[number], seeds[number])
            for number, field in through.items()
        ]
        for (number, field), made in zip(through.items(), self.perform(jobs, **options)):
            on[number], values[number] = Direction((field,), directions[number].target), (made.value,)
        return on, values

    def edit(self, value: Any, **given: Any) -> Any:
        """The value with a part made anew, and the rest exactly as it was.

        ``ax.edit("fish.png", keep="0,0,64,32", source="a blue fish", seed=3)``. `value` is as a source of a conversion;
        the other arguments are those of `anyxform.edit.Round` and `anyxform.sampling.Sampling`. A ValueError says what
        cannot be read, kept or made anew.
        """
        return edit(self, *self.read(value), Round.of(**given))[0].value

    def field(self, name: str) -> Field:
        """The target that a user asks for; a ValueError names what the model has instead."""
        found = Field.parse(name)
        if marker(found.modality) not in self.model.condition_ids:
            raise ValueError(f"this model makes no {found.modality!r}: {did_you_mean(found.modality, self.made)}")
        known = [condition for condition in self.model.condition_ids if condition not in map(marker, self.made)]
        for attribute in found.attributes:
            if attribute not in known:
                raise ValueError(
                    f"the model knows no variant {attribute!r} of {found.modality}: {did_you_mean(attribute, known)}"
                )
        return found

    @property
    def made(self) -> list[str]:
        """The modalities that can be asked for."""
        return [name for name in self.modalities if marker(name) in self.model.condition_ids]

    def read(self, given: Any) -> tuple[str, Any]:
        """The modality's name and the value of something that a user gives."""
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str):
            name, content = given
            if name not in self.modalities:
                raise ValueError(f"this model reads no {name!r}: {did_you_mean(name, list(self.modalities))}")
            if self.modalities[name].literal and isinstance(content, str):  # it is a value, whatever files there are
                content = content.encode()
            return name, self._value(name, content)
        path = _file(given)
        name = self._literal(given) if path is None else self._owner(path)
        return name, self._value(name, given)

    def _value(self, name: str, given: Any) -> Any:
        """A value of the modality: a file's, that of what a file would hold (a string, bytes), or what is given."""
        modality, path = self.modalities[name], _file(given)
        if path is None and not isinstance(given, str | bytes):
            return modality.accept(given)
        try:
            if path is not None:
                return modality.load(path.read_bytes())
            return modality.load(given.encode() if isinstance(given, str) else given)
        except ValueError as error:
            if path is not None:
                raise ValueError(f"{path}: {error}") from error
            if modality.literal or isinstance(given, bytes):
                raise
            raise ValueError(f"there is no file {_short(given)}, and as {name} it cannot be read: {error}") from error

    def save(self, value: Any, path: str | Path) -> None:
        """Write a value as a file of the modality that owns its ending. ValueError: none writes such files."""
        name = self._owner(Path(path))
        modality = self.modalities[name]
        if Path(path).suffix.lower().lstrip(".") != modality.extensions[0]:
            raise ValueError(f"{path}: {name} is written as .{modality.extensions[0]}")
        Path(path).write_bytes(modality.save(value))

    def _owner(self, path: Path) -> str:
        """Which modality a file is of, by its ending."""
        ending = path.suffix.lower().lstrip(".")
        for name, modality in self.modalities.items():
            if ending in modality.extensions:
                return name
        endings = sorted(ending for modality in self.modalities.values() for ending in modality.extensions)
        raise ValueError(
            f"{path}: the model reads {', '.join(f'.{it}' for it in endings)}: convert it, or say what it is by --from "
            "MODALITY, in Python (modality, path)"
        )

    def _literal(self, given: Any) -> str:
        """Which modality something is of that is no file: strings are of the one that is written like this."""
        if not isinstance(given, str):
            raise ValueError(f"{_short(given)} is no file, and its modality is unknown: give (modality, value)")
        if _looks_like_a_file(given, self.modalities):
            raise ValueError(f"there is no file {_short(given)}")
        if not self.literal:
            raise ValueError(f"there is no file {_short(given)}, and the model reads {', '.join(self.modalities)}")
        return self.literal

    @property
    def literal(self) -> str:
        """The modality whose values are written out on a command line; empty: the model reads none."""
        return next((name for name, modality in self.modalities.items() if modality.literal), "")

    def request(self, direction: Direction, values: Sequence[Any]) -> Request:
        """A request for the target of a direction, given its sources' values; ValueError: one is too long, say."""
        pairs = zip(direction.sources, values, strict=True)
        sources = tuple(
            source(self.modalities[field.modality], value, direction.target.modality) for field, value in pairs
        )
        return Request(sources, direction.target)

    def job(self, direction: Direction, values: Sequence[Any], seed: int = 0) -> Job:
        """Requests for the target of a direction, given its sources' values, of which one may be of any length."""
        return cut(self.modalities, direction, values, self.request, seed)

    def perform(self, jobs: Sequence[Job], *, batch_size: int = 64, words: bool = False, **options: Any) -> list[Made]:
        """What is made of each job; pieces of all are batched. `options` as for `answer`, seeds those of the jobs."""
        chosen = self.learnt(sampling_of(options), [request for job in jobs for request in job.requests])
        made = perform(self.model, self.modalities, jobs, chosen, batch_size)
        return with_words(self.model, self.modalities, jobs, made) if words else made

    def ranked(
        self,
        directions: Sequence[Direction],
        sources: Sequence[Sequence[Any]],
        *,
        n: int,
        rank: Rank = "back",
        requests: Sequence[Request] | None = None,
        batch_size: int = 64,
        **options: Any,
    ) -> list[list[Candidate]]:
        """Up to `n` candidates for each direction and its sources' values, best first; `options` as for `answer`.

        Sources are whole inputs: a ValueError says which is longer than the model reads at once. `requests` are those
        of the directions and sources, if they have seeds of their own.
        """
        check_rank(rank)
        sources = [self.whole(*pair) for pair in zip(directions, sources, strict=True)]
        requests = requests or [self.request(*pair) for pair in zip(directions, sources)]
        chosen = self.learnt(sampling_of(options), requests)
        targets = [self.modalities[it.target.modality] for it in directions]
        silent = [self.silent(*pair) for pair in zip(directions, sources)]
        asked = [it for it, nothing in zip(seeded(requests, chosen.seed), silent) if not nothing]
        drawn = iter(draw(self.model, self.modalities, asked, n, chosen, batch_size=batch_size))
        found = [[] if nothing else next(drawn) for nothing in silent]
        values = [
            [target.join([], [])] if nothing else [target.from_codes(it) for it in codes]
            for target, nothing, codes in zip(targets, silent, found)
        ]
        questions = [Answered(*question) for question in zip(directions, sources, found, values)]
        return rank_by(self.model, self.modalities, questions, rank)

    def whole(self, direction: Direction, sources: Sequence[Any]) -> list[Any]:
        """The sources' values, each without the silence around it. ValueError: one is too long to be read at once."""
        pieces = [self.modalities[field.modality].split(it) for field, it in zip(direction.sources, sources)]
        for field, some in zip(direction.sources, pieces):
            if len(some) > 1:
                raise ValueError(f"candidates are of what is read at once, and the {field} is longer: leave n out")
        return [some[0].value if some else value for some, value in zip(pieces, sources)]

    def silent(self, direction: Direction, sources: Sequence[Any]) -> bool:
        """Whether nothing is there to make a value of, as in a recording in which nobody speaks."""
        return len(sources) == 1 and not self.modalities[direction.sources[0].modality].split(sources[0])

    def answer(
        self,
        directions: Sequence[Direction],
        sources: Sequence[Sequence[Any]],
        *,
        batch_size: int = 64,
        **options: Any,
    ) -> list[Any]:
        """One value for each direction and its sources' values, as when each is asked for alone, but in batches.

        Each has the next seed. `options` are those of `anyxform.sampling.Sampling`.
        """
        seed = sampling_of(options).seed
        pairs = enumerate(zip(directions, sources, strict=True))
        jobs = [self.job(direction, values, seed + number) for number, (direction, values) in pairs]
        return [made.value for made in self.perform(jobs, batch_size=batch_size, **options)]

    def many(self, given: Iterable[Any], *, to: str, batch_size: int = 64, **options: Unpack[Options]) -> list[Any]:
        """Convert each of these inputs, in batches; each is a source as for a call, and has the next seed.

        ``ax.many(["a.png", "b.png"], to="text:fr")``. ValueError: one of them cannot be read or asked for, which is
        found when it is its turn: where that may be, take `stream`.
        """
        found = []
        for it in self.stream(given, to=to, batch_size=batch_size, **options):
            if isinstance(it, ValueError | OSError):
                raise it
            found.append(it)
        return found

    def stream(
        self, given: Iterable[Any], *, to: str, batch_size: int = 64, **options: Unpack[Options]
    ) -> Iterator[Any]:
        """The same for any number of inputs, which are read a few batches ahead. Where one cannot be read or asked for,
        the error that says why comes in place of its value."""
        target, sampling = self.field(to), sampling_of(options)

        def jobs() -> Iterator[Job | ValueError | OSError]:
            for number, it in enumerate(given):
                try:
                    name, value = self.read(it)
                    self.check_spelling(sampling, name, target.modality)
                    yield self.job(Direction((Field(name),), target), (value,), sampling.seed + number)
                except (ValueError, OSError) as error:
                    yield error

        for pool in pooled(jobs(), AHEAD * batch_size):
            found = [job for job in pool if isinstance(job, Job)]
            made = iter(self.perform(found, batch_size=batch_size, **options))
            for job in pool:
                yield next(made).value if isinstance(job, Job) else job


def load(
    path: str | Path = STARTER, *, device: str | None = None, dtype: Dtype = "fp32", compile: bool = False
) -> Pipeline:
    """A checkpoint as a `Pipeline`, on CUDA where there is one, its weights as `dtype` says: see `anyxform.quantize`.

    `compile`: the step of plain decoding left to right, at its first use; there is none for beams, drafts, effort and
    masked decoding. See `anyxform.compiled`.

    `path`: the folder of a checkpoint or of a run, which stands for its newest one; or the name of one that is shipped
    with the package, such as ``starter``. A folder of that name comes first. ValueError: nothing there, or not whole,
    or a dtype that is not possible.
    """
    place, folder = pick_device(device), located(path)
    model, modalities, config = checkpoint.load(folder)
    model = prepare(model.to(place), dtype)
    model.decode_step = CompiledStep(model) if compile else None
    return Pipeline(model, modalities, checkpoint.find(folder), config)


def located(path: str | Path) -> Path:
    """The folder that is meant: of a name that is no folder here, that of the checkpoint which is shipped under it."""
    folder = Path(path)
    shipped = SHIPPED / folder.name
    return shipped if not folder.exists() and shipped.is_dir() and str(path) == folder.name else folder


def pick_device(name: str | None) -> torch.device:
    """The device of that name; without one, CUDA where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _file(given: Any) -> Path | None:
    """The path of an existing file, if that is what is given."""
    if isinstance(given, Path):
        if not given.is_file():
            raise ValueError(f"there is no file {str(given)!r}")
        return given
    if not isinstance(given, str) or not given:
        return None
    try:
        return Path(given) if Path(given).is_file() else None
    except OSError:  # a name that is longer than file systems allow
        return None


def _looks_like_a_file(given: str, modalities: Mapping[str, Modality]) -> bool:
    """Whether a string that names no file was meant to: one word with an ending, that of a modality or in a folder."""
    ending = Path(given).suffix.lower().lstrip(".")
    if not ending or len(given.split()) != 1:
        return False
    return ("/" in given and ending.isalnum()) or any(ending in modality.extensions for modality in modalities.values())


def _short(given: Any, most: int = 200) -> str:
    text = repr(given)
    return text if len(text) <= most else text[: most - 1] + "…"
