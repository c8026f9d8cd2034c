"""The audio plug-in: log-mel frames in, codes of a neural tokenizer out. F frames, M bands, T tokens, K codebooks."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jiwer
import torch
from torch import Tensor, nn

from anyxform.modality import Modality, Piece, Score, check_decoding
from modalities.audio import judge, region, spectrogram, waveform
from modalities.audio.augment import augment
from modalities.audio.delay import delayed, undelayed
from modalities.audio.waveform import SAMPLE_RATE, Waveform
from modalities.audio.windows import windows

STRIDE = 4
"""Frames of a token, on either side of the model: 20 tokens a second."""
VOCODERS: dict[str, Callable[[Tensor], Tensor]] = {"griffin-lim": spectrogram.griffin_lim}
"""From frames ``[F, M]`` to samples at 16 kHz. A trained one registers itself here by name."""
MAX_COMPARED = 6
PAUSE = 0.25
"""Seconds between recordings that are joined."""


class Audio(Modality):
    """Mono recordings (`Waveform`), preprocessed to normalised log-mel frames ``[F, 80]``, F a multiple of 4."""

    name: ClassVar[str] = "audio"
    extensions: ClassVar[tuple[str, ...]] = ("wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "wma", "webm")
    unit: ClassVar[str] = "seconds"
    token_span: ClassVar[float] = STRIDE * spectrogram.HOP / SAMPLE_RATE
    joins: ClassVar[bool] = True
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"lsd", "duration_error", "judge_wer", "judge_cer"})
    training_arguments: ClassVar[frozenset[str]] = frozenset({"augment"})
    source_arguments: ClassVar[frozenset[str]] = frozenset({"pace"})

    def __init__(
        self,
        max_seconds: float = 6.0,
        levels: Sequence[int] = (8, 5, 5, 5),
        num_codebooks: int = 6,
        width: int = 192,
        augment: float = 1.0,
        vocoder: str = "griffin-lim",
        decoding: str = "masked",
        delay: bool = False,
        pace: float = 1.0,
    ) -> None:
        """
        `max_seconds`: longer recordings are refused. `levels`: of each of `num_codebooks` quantisers, whose product is
        a codebook's size. `width`: channels of the tokenizer. `augment`: strength in training, 0 for none.
        `decoding`: ``masked``, or ``autoregressive``, left to right. `delay`: each codebook is a token behind the one
        before it, so that a code is chosen when those of its frames in the codebooks before are known. `pace`: how far
        a target's token is from the next, for targets that run along texts, whose tokens take longer to say.
        """
        fine = max_seconds > 0 and num_codebooks >= 1 and 0 <= augment <= 1 and min(levels, default=0) >= 3
        if not fine or not 0 < pace < math.inf:
            raise ValueError(
                "audio needs max_seconds > 0, num_codebooks >= 1, augment from 0 to 1, levels >= 3 and pace > 0, "
                f"not {max_seconds}, {num_codebooks}, {augment}, {list(levels)} and {pace}"
            )
        if vocoder not in VOCODERS:
            raise ValueError(f"audio has no vocoder {vocoder!r}: use one of {', '.join(VOCODERS)}")
        self._config = {
            "max_seconds": max_seconds, "levels": list(levels), "num_codebooks": num_codebooks, "width": width,
            "augment": augment, "vocoder": vocoder, "decoding": decoding, "delay": delay,
            "pace": pace,
        }  # fmt: skip
        self.decoding = check_decoding(self.name, decoding)
        self.pace = pace
        self.max_seconds, self.augment, self.vocoder = max_seconds, augment, vocoder
        self.num_codebooks = num_codebooks
        self.vocab_size = math.prod(levels)
        self.delay = delay and num_codebooks > 1
        self.longest = math.ceil(max_seconds * SAMPLE_RATE / (spectrogram.HOP * STRIDE))  # without the delay
        self.max_length = self.longest + (num_codebooks - 1 if self.delay else 0)
        self.tokenizer = _tokenizer(tuple(levels), num_codebooks, width)

    def load(self, data: bytes) -> Waveform:
        return waveform.read(data)

    def accept(self, value: Any) -> Waveform:
        return waveform.accept(value)

    def save(self, value: Waveform) -> bytes:
        return waveform.write(value)

    def preprocess(self, value: Waveform, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        if value.seconds > self.max_seconds:
            raise ValueError(
                f"the recording lasts {value.seconds:.1f} s, longer than max_seconds={self.max_seconds:g}: cut it"
            )
        frames = spectrogram.log_mel(waveform.at_model_rate(value), STRIDE)
        return augment(frames, generator, self.augment, STRIDE) if train and self.augment else frames

    def source_positions(self, tensor: Tensor) -> Tensor:
        return torch.arange(tensor.shape[0] // STRIDE)[:, None]

    def front_end(self, dim: int) -> nn.Module:
        from modalities.audio.front_end import ConvStem

        return ConvStem(dim)

    def codes(self, tensor: Tensor) -> Tensor:
        codes = self.tokenizer.encode(tensor[None])[0]
        return delayed(codes) if self.delay else codes

    def code_positions(self, length: int) -> Tensor:
        return torch.arange(length)[:, None] * (int(self.pace) if self.pace % 1 == 0 else self.pace)

    def from_codes(self, codes: Tensor) -> Waveform:
        codes = codes.reshape(-1, self.num_codebooks)
        frames = self.tokenizer.decode((undelayed(codes) if self.delay else codes)[None])[0]
        return Waveform(VOCODERS[self.vocoder](frames))

    @property
    def source_sizes(self) -> range:
        return range(STRIDE, STRIDE * self.longest + 1, STRIDE)

    def decoder(self) -> nn.Module:
        """Of codes of which the `delay` has been undone, as `recipe` says by how many tokens."""
        from modalities.audio.tokenizer import Decoder

        return Decoder(self.tokenizer)

    def recipe(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        own = {"sample_rate": SAMPLE_RATE, "multiple_of_frames": STRIDE, "tokens_behind": int(self.delay)}
        return spectrogram.recipe() | own, {}

    def region(self, spec: str, value: Waveform) -> Tensor:
        """The mask of the samples of ``from:to`` in seconds, such as ``0:1.5``."""
        return region.named(spec, value)

    def extended(self, spec: str, value: Waveform) -> tuple[Waveform, Tensor]:
        """Longer by ``after`` or ``before,after`` seconds."""
        return region.extended(spec, value)

    def divided(self, value: Waveform, mask: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.codes(self.preprocess(value))
        reach = self.num_codebooks - 1 if self.delay else 0
        return codes, ~region.touched(mask, value.sample_rate, STRIDE, len(codes), reach)

    def paste(self, original: Waveform, edited: Waveform, mask: Tensor) -> Waveform:
        return region.paste(original, edited, mask)

    def split(self, value: Waveform) -> list[Piece]:
        """Utterances, the longer ones cut as `windows` says; what is not too long is read whole, if anyone speaks."""
        samples = waveform.at_model_rate(value)
        found = windows(samples, SAMPLE_RATE, self.max_seconds)
        if found and value.seconds <= self.max_seconds:
            return [Piece(value, found[0].start / SAMPLE_RATE, found[-1].end / SAMPLE_RATE)]
        return [
            Piece(
                Waveform(samples[it.first : it.last]),
                start=it.start / SAMPLE_RATE,
                end=it.end / SAMPLE_RATE,
                overlap=it.overlap / SAMPLE_RATE,
                between=" ",
                offset=it.first / SAMPLE_RATE,
            )
            for it in found
        ]

    def join(self, values: Sequence[Waveform], pieces: Sequence[Piece]) -> Waveform:
        """One after the other, at 16 kHz, with pauses of `PAUSE` seconds."""
        if len(values) < 2:
            return super().join(values, pieces)
        pause = torch.zeros(round(PAUSE * SAMPLE_RATE))
        parts = [part for it in values for part in (pause, waveform.at_model_rate(it))]
        return Waveform(torch.cat(parts[1:]))

    def fit(self, values: Sequence[Waveform], *, steps: int | None = None, seed: int = 0) -> Iterator[dict[str, float]]:
        from modalities.audio.tokenizer import train

        if not values:
            raise ValueError("there is no recording to fit a tokenizer on")
        yield from train(self.tokenizer, [_frames(value) for value in values], steps=steps, seed=seed)

    def report(self, values: Sequence[Waveform]) -> dict[str, float]:
        """Log-spectral distance of reconstructed frames (dB), codes used and rates."""
        if not values:
            raise ValueError("there is no recording to report on")
        distances, used = [], torch.zeros(self.num_codebooks, self.vocab_size)
        for value in values:
            frames = _frames(value)
            codes = self.tokenizer.encode(frames[None])[0]
            distances.append(spectrogram.distance(self.tokenizer.decode(codes[None])[0], frames))
            for book, row in enumerate(codes.T):
                used[book] += row.bincount(minlength=self.vocab_size)
        rate = SAMPLE_RATE / (spectrogram.HOP * STRIDE)
        return {
            "log_spectral_distance": sum(distances) / len(distances),
            "tokens_per_second": rate,
            "bits_per_second": rate * self.num_codebooks * math.log2(self.vocab_size),
            "codes_used": int((used > 0).sum()),
            "codebook_usage": float((used > 0).float().mean()),
        }

    def compare(self, values: Sequence[Waveform], path: str) -> None:
        """A PNG: spectrograms of recordings, each above that of its reconstruction; low bands below."""
        from modalities.audio.picture import spectrograms

        frames = [_frames(value) for value in values[:MAX_COMPARED]]
        again = [self.tokenizer.decode(self.tokenizer.encode(clip[None]))[0] for clip in frames]
        spectrograms([clip for pair in zip(frames, again) for clip in pair]).save(path, "PNG")

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def state(self) -> dict[str, Tensor]:
        return dict(self.tokenizer.state_dict())

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.tokenizer.load_state_dict(state)

    def metrics(self, predicted: Waveform, reference: Waveform) -> dict[str, Score]:
        """Log-spectral distance (dB), the prediction stretched to the reference's length; seconds between the two."""
        frames = [spectrogram.log_mel(waveform.at_model_rate(it), 1) for it in (predicted, reference)]
        return {
            "lsd": Score(spectrogram.distance(frames[0], frames[1])),
            "duration_error": Score(abs(predicted.seconds - reference.seconds)),
        }

    def judge(
        self, predicted: Sequence[Waveform], references: Sequence[Waveform], texts: Sequence[str]
    ) -> dict[str, list[Score]]:
        """`judge_wer`, `judge_cer`: of what Whisper tiny.en hears, against the English text; weighted by its length."""
        if not predicted or not judge.installed():
            return {}
        scores: dict[str, list[Score]] = {"judge_wer": [], "judge_cer": []}
        for heard, text in zip(judge.transcribe(predicted), texts):
            wanted, got = judge.normalised(text) or "-", judge.normalised(heard)
            scores["judge_wer"].append(Score(jiwer.wer(wanted, got), len(wanted.split())))
            scores["judge_cer"].append(Score(jiwer.cer(wanted, got), len(wanted)))
        return scores

    def example(self, generator: torch.Generator) -> Waveform:
        pitch, seconds = 200 + 400 * float(torch.rand((), generator=generator)), 0.3
        time = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        return Waveform(0.5 * torch.sin(2 * math.pi * pitch * time))


def _frames(value: Waveform) -> Tensor:
    """Frames of a recording of any length, on which the tokenizer is fitted and judged."""
    return spectrogram.log_mel(waveform.at_model_rate(value), STRIDE)


def _tokenizer(levels: tuple[int, ...], num_codebooks: int, width: int) -> Any:
    """A tokenizer whose first weights are always the same, so that an unfitted one is a function too."""
    from modalities.audio.tokenizer import Tokenizer  # its quantiser takes seconds to import

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs too
        return Tokenizer(levels, num_codebooks, width).eval().requires_grad_(False)
