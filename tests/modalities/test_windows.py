"""Where recordings are cut: all speech is in a window, nothing is read twice but where it has to be, silence never."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from modalities.audio import Audio, Waveform
from modalities.audio.windows import BREATH, OVERLAP, PADDING, windows

RATE = 16_000


def tone(seconds: float, level: float = 0.3) -> Tensor:
    return level * torch.sin(2 * math.pi * 440 * torch.arange(round(seconds * RATE)) / RATE)


def silence(seconds: float, level: float = 0.0) -> Tensor:
    return level * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0))


def spans(samples: Tensor, longest: float = 6.0) -> list[tuple[float, float]]:
    return [(round(it.start / RATE, 2), round(it.end / RATE, 2)) for it in windows(samples, RATE, longest)]


def random_speech(seed: int) -> Tensor:
    """Tones and silences of all lengths, with a little noise below."""
    chance = torch.Generator().manual_seed(seed)
    lengths = (10 ** (2.2 * torch.rand(40, generator=chance) - 1.4)).tolist()  # 0.04 to 6.3 seconds
    parts = [tone(length) if number % 2 else torch.zeros(round(length * RATE)) for number, length in enumerate(lengths)]
    samples = torch.cat(parts)
    return samples + 1e-4 * torch.randn(len(samples), generator=chance)


def test_utterances_are_parted_by_pauses_and_keep_a_little_of_them() -> None:
    samples = torch.cat([silence(1), tone(2), silence(0.3), tone(1), silence(0.8), tone(3), silence(0.1)])
    first, second = windows(samples, RATE, 6.0)
    assert spans(samples) == [(1.0, 4.3), (5.1, 8.1)]
    assert (first.first, first.last) == ((1 - PADDING) * RATE, (4.3 + PADDING) * RATE)
    assert second.last == pytest.approx((8.1 + 0.1) * RATE, abs=320)


@pytest.mark.parametrize("level", [0.0, 1e-5, 5e-4])
def test_silence_has_no_window(level: float) -> None:
    assert windows(silence(20, level), RATE, 6.0) == []
    assert windows(torch.zeros(0), RATE, 6.0) == []
    assert windows(silence(20, level) + 0.2, RATE, 6.0) == [], "nor has an offset that a microphone adds"


def test_speech_may_be_soft_and_noise_below_it() -> None:
    for loudness in (1.0, 0.03):
        samples = torch.cat([silence(2), tone(1, 0.3), silence(2), tone(1, 0.2), silence(2)])
        noisy = loudness * (samples + silence(8, 0.002))
        assert spans(noisy) == [(2.0, 3.0), (5.0, 6.0)], loudness


def test_a_long_utterance_is_cut_at_its_longest_breath() -> None:
    samples = torch.cat([tone(3), silence(0.2), tone(1), silence(0.4), tone(1), silence(0.2), tone(3)])
    found = windows(samples, RATE, 6.0)
    assert spans(samples) == [(0.0, 4.2), (4.6, 8.8)] and not any(it.overlap for it in found)
    stop = torch.cat([tone(3), silence(BREATH - 0.04), tone(4)])
    assert windows(stop, RATE, 6.0)[1].overlap, "a consonant is no breath"


def test_speech_without_any_silence_is_cut_with_an_overlap() -> None:
    found = windows(tone(20), RATE, 6.0)
    assert len(found) == 5 and all(it.last - it.first <= 6 * RATE for it in found)
    for sooner, later in pairwise(found):
        assert sooner.last - later.first == later.overlap == OVERLAP * RATE
        assert sooner.end == later.start == (sooner.last + later.first) / 2
    assert found[0].start == found[0].first == 0 and found[-1].end == found[-1].last == 20 * RATE


@pytest.mark.parametrize("longest", [0.5, 2.0, 6.0, 30.0])
@pytest.mark.parametrize("seed", range(6))
def test_all_speech_is_in_windows_the_model_can_read(seed: int, longest: float) -> None:
    samples = random_speech(seed)
    found = windows(samples, RATE, longest)
    assert max(it.last - it.first for it in found) <= longest * RATE
    read, twice = torch.zeros(len(samples)), 0
    for sooner, later in zip([None, *found], found):
        read[later.first : later.last] += 1
        assert later.first <= later.start < later.end <= later.last
        assert sooner is None or (sooner.end <= later.start and sooner.first < later.first)
        twice += later.overlap
    loud = torch.nn.functional.max_pool1d((samples.abs() > 0.1).float()[None], 321, 1, 160)[0] > 0
    assert read[loud].min() == 1, "speech is lost"
    assert read.max() <= 2 and (read == 2).sum() == twice


def test_a_recording_that_fits_is_one_piece_as_it_is_and_only_its_speech_counts() -> None:
    audio = Audio(width=16)
    value = Waveform(torch.cat([silence(1), tone(1), silence(1), tone(1), silence(1)]))
    (piece,) = audio.split(value)
    assert piece.value is value and (piece.start, piece.end) == (1.0, 4.0)
    assert audio.split(Waveform(torch.zeros(32_000))) == []
    long = audio.split(Waveform(torch.cat([value.samples, value.samples])))
    assert [(it.start, it.end, it.between) for it in long] == [(n, n + 1.0, " ") for n in (1.0, 3.0, 6.0, 8.0)]


def test_pieces_are_of_any_rate_at_16_khz() -> None:
    time = torch.arange(44_100 * 9) / 44_100
    value = Waveform(0.3 * torch.sin(2 * math.pi * 440 * time) * (time % 3 < 2), 44_100)
    pieces = Audio(width=16).split(value)
    assert [(round(it.start, 1), round(it.end, 1)) for it in pieces] == [(0, 2), (3, 5), (6, 8)]
    assert all(it.value.sample_rate == RATE and it.value.seconds == pytest.approx(2.3, abs=0.15) for it in pieces)


def test_recordings_are_joined_with_pauses() -> None:
    audio, beep = Audio(width=16), Waveform(tone(0.5))
    joined = audio.join([beep, Waveform(torch.zeros(8_000), 8_000), beep], [])
    assert joined.seconds == 0.5 + 0.25 + 1 + 0.25 + 0.5 and torch.equal(joined.samples[-8_000:], beep.samples)
    assert audio.join([beep], []) is beep
    with pytest.raises(ValueError, match="says nothing"):
        audio.join([], [])
