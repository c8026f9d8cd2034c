"""Audio: files of every kind and state, spectrograms and back, augmentation, the tokenizer, metrics and the judge."""

import io
import json
import math
import random
import struct
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
import torchaudio
from torch import Tensor

from anyxform.shards import index
from modalities.audio import Audio, Waveform, judge, modality, spectrogram, waveform

SMALL = {"width": 16, "num_codebooks": 2}
PROMPTS = Path(__file__).parents[2] / "data" / "starter" / "prompts" / "test-000000.tar"
KINDS = [
    ("WAV", "PCM_16", 44_100, 2), ("WAV", "PCM_U8", 8_000, 1), ("WAV", "FLOAT", 16_000, 1), ("WAV", "ULAW", 8_000, 1),
    ("FLAC", "PCM_24", 48_000, 2), ("OGG", "VORBIS", 22_050, 1), ("OGG", "OPUS", 48_000, 2),
    ("MP3", "MPEG_LAYER_III", 44_100, 2), ("MP3", "MPEG_LAYER_III", 16_000, 1),
]  # fmt: skip


def sines(seconds: float = 1.0, rate: int = 16_000, pitches: tuple[float, ...] = (300, 1100, 2600)) -> Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return sum(0.3 / (n + 1) * torch.sin(2 * math.pi * pitch * time) for n, pitch in enumerate(pitches))


def sweep(seconds: float = 1.0) -> Waveform:
    """What no part of is like another."""
    time = torch.arange(round(seconds * 16_000)) / 16_000
    return Waveform(0.4 * torch.sin(2 * math.pi * (200 * time + 700 / seconds * time**2)))


def noise(seconds: float = 1.0, seed: int = 0) -> Waveform:
    return Waveform(0.3 * torch.randn(round(seconds * 16_000), generator=torch.Generator().manual_seed(seed)))


def encoded(samples: Tensor, kind: str, subtype: str, rate: int, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples[:, None].repeat(1, channels).numpy(), rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Files


@pytest.mark.parametrize(("kind", "subtype", "rate", "channels"), KINDS)
def test_every_kind_of_file_is_read(kind: str, subtype: str, rate: int, channels: int) -> None:
    value = waveform.read(encoded(sines(rate=rate), kind, subtype, rate, channels))
    assert value.sample_rate == 16_000 and value.samples.dtype == torch.float32
    assert value.seconds == pytest.approx(1, abs=0.06)  # mp3 is padded to whole frames
    loudest = torch.fft.rfft(value.samples[2_000:14_000]).abs().argmax().item() * 16_000 / 12_000
    assert loudest == pytest.approx(300, abs=3)
    assert value.samples.std().item() == pytest.approx(sines().std().item(), rel=0.1)


@pytest.mark.parametrize(("kind", "subtype", "rate", "channels"), KINDS)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.75, 0.95])
def test_no_file_that_is_cut_short_is_read(kind: str, subtype: str, rate: int, channels: int, share: float) -> None:
    data = encoded(sines(2.0, rate=rate), kind, subtype, rate, channels)
    with pytest.raises(
        ValueError, match=r"^(the recording is cut short, at byte|not a recording that can be read)"
    ) as e:
        Audio(**SMALL).load(data[: round(share * len(data))])
    assert "\n" not in str(e.value) and "object at" not in str(e.value)


def test_other_bytes_are_not_taken_for_sound() -> None:
    """Decoders of MPEG make something of much, of what begins as UTF-16 does, say."""
    chance = random.Random(0)
    for start in (
        b"\xff\xfe\x00",
        b"\xff\xfb",
        b"ID3",
        b"RIFF____WAVE",
        b"RIFF____WEBP",
        b"OggS",
        b"fLaC",
        b"%PDF-1.7",
        b"\x00\x00\x00\x18ftypM4A ",
        b"\x1a\x45\xdf\xa3",
        b"\x30\x26\xb2\x75",
        b"\xff\xf1",
        b"",
    ):
        for data in (start + b" no file \x80\x81" * 9, start + chance.randbytes(3000)):
            with pytest.raises(ValueError) as error:
                waveform.read(data)
            assert "\n" not in str(error.value) and len(str(error.value)) < 200


CONTAINERS = [("ipod", "aac"), ("adts", "aac"), ("asf", "wmav2"), ("webm", "libopus")]
"""FFmpeg's names of m4a, aac, wma and webm, and of a codec in each."""


def contained(samples: Tensor, kind: str, codec: str, rate: int = 48_000) -> bytes:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono", bit_rate=64_000)
        frame = av.AudioFrame.from_ndarray(samples[None].numpy(), format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, "mono", rate, stream.codec_context.frame_size or 1024)
        for part in (frame, None):
            for piece in resampler.resample(part):
                file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "codec"), CONTAINERS)
def test_other_containers_are_read_with_pyav(kind: str, codec: str) -> None:
    value = waveform.read(contained(sines(rate=48_000), kind, codec))
    assert value.sample_rate == 16_000 and value.samples.dtype == torch.float32
    assert value.seconds == pytest.approx(1, abs=0.15)  # encoders pad
    loudest = torch.fft.rfft(value.samples[2_000:14_000]).abs().argmax().item() * 16_000 / 12_000
    assert loudest == pytest.approx(300, abs=3)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
@pytest.mark.parametrize(("kind", "codec"), [it for it in CONTAINERS if it[0] != "adts"])  # which states no length
def test_no_container_that_is_cut_short_is_read(kind: str, codec: str, share: float) -> None:
    data = contained(sines(2.0, rate=48_000), kind, codec)
    with pytest.raises(ValueError, match=r"^(the recording is cut short|not a recording that can be read)"):
        waveform.read(data[: round(share * len(data))])


def test_an_aac_that_begins_with_silence_is_whole() -> None:
    """Its length is guessed from its first frames, which are small."""
    samples = torch.cat([torch.zeros(96_000), sines(2.0, rate=48_000)])
    assert waveform.read(contained(samples, "adts", "aac")).seconds == pytest.approx(4, abs=0.15)
    samples = torch.cat([0.5 * torch.randn(96_000), torch.zeros(480_000)])
    assert waveform.read(contained(samples, "adts", "aac")).seconds == pytest.approx(12, abs=0.15)


def test_a_container_of_days_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = contained(sines(rate=48_000), "ipod", "aac")
    monkeypatch.setattr(waveform, "LARGEST", 15_000)
    with pytest.raises(ValueError, match=r"longer than 0.00026 hours: cut it"):
        waveform.read(data)


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'anyxform\[av\]'"):
        waveform.read(b"\x1a\x45\xdf\xa3" + bytes(100))


def test_a_wav_that_was_streamed_is_read() -> None:
    """Its length was not known when its header was written."""
    data = bytearray(encoded(sines(), "WAV", "PCM_16", 16_000))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert waveform.read(bytes(data)).seconds == 1


def test_an_mp3_with_a_tag_is_read() -> None:
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)
    data = encoded(sines(), "MP3", "MPEG_LAYER_III", 16_000)
    assert waveform.read(tag + data).seconds == waveform.read(data).seconds
    with pytest.raises(ValueError, match="cut short"):
        waveform.read((tag + data)[:-900])


@pytest.mark.parametrize("seconds", [0, 0.01, 0.029])
def test_recordings_without_length_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"the recording lasts 0[.\d]* s, and at least 0.03 s are needed"):
        waveform.read(encoded(sines(seconds), "WAV", "PCM_16", 16_000))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_no_numbers_are_refused(bad: float) -> None:
    samples = sines()
    samples[5] = bad
    with pytest.raises(ValueError, match="not finite"):
        waveform.read(encoded(samples, "WAV", "FLOAT", 16_000))


def test_enormous_recordings_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(torch.zeros(20_000), "FLAC", "PCM_16", 16_000, channels=2)
    monkeypatch.setattr(waveform, "LARGEST", 19_999)
    monkeypatch.setattr(waveform, "_blocks", None)
    with pytest.raises(ValueError, match=r"longer than 0.000347 hours: cut it"):
        waveform.read(data)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("size", [999, 100_000])
def test_blocks_are_resampled_as_all_at_once(rate: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = torch.randn(5 * rate + 7, generator=torch.Generator().manual_seed(0))
    expected = torchaudio.functional.resample(samples, rate, 16_000)
    monkeypatch.setattr(waveform, "BLOCK", 1)
    made = list(waveform.resampled(samples.split(size), rate))
    assert len(made) > 4
    torch.testing.assert_close(torch.cat(made), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [44_101, 1_000_000_007])
def test_rates_for_which_a_filter_would_be_enormous_are_refused(rate: int) -> None:
    with pytest.raises(ValueError, match=f"the odd rate of {rate} Hz: export it at a common one"):
        waveform.at_model_rate(Waveform(torch.zeros(100), rate))


def test_stereo_becomes_the_mean() -> None:
    left = sines().numpy()
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([left, np.zeros_like(left)], axis=1), 16_000, format="WAV", subtype="FLOAT")
    torch.testing.assert_close(waveform.read(buffer.getvalue()).samples, sines() / 2)


def test_what_is_written_is_read_again_but_for_clipping() -> None:
    loud = Waveform(torch.tensor([0.5, 3.0, -3.0, 0.0] * 300))
    again = waveform.read(waveform.write(loud))
    torch.testing.assert_close(again.samples, loud.samples.clamp(-1, 1), atol=1e-4, rtol=0)


def test_other_sample_rates_are_the_same_sound() -> None:
    audio = Audio(**SMALL)
    one, other = (audio.preprocess(Waveform(sines(rate=rate), rate)) for rate in (16_000, 48_000))
    assert one.shape == other.shape and spectrogram.distance(one[2:-2], other[2:-2]) < 1


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_too_long_is_refused_and_never_cut(seconds: float) -> None:
    audio = Audio(max_seconds=seconds, **SMALL)
    longest = audio.preprocess(Waveform(sines(seconds)))
    assert len(audio.codes(longest)) == audio.max_length == 20 * seconds
    with pytest.raises(ValueError, match=rf"longer than max_seconds={seconds:g}"):
        audio.preprocess(Waveform(sines(seconds + 0.01)))


# Spectrograms


@pytest.mark.parametrize("samples", [480, 799, 800, 801, 12_345, 16_000])
def test_frames_come_in_whole_tokens(samples: int) -> None:
    frames = spectrogram.log_mel(sines()[:samples], 4)
    assert frames.shape == (math.ceil(samples / 800) * 4, 80) and frames.isfinite().all()


def test_silence_is_the_floor_and_sounds_are_above() -> None:
    silent = spectrogram.log_mel(torch.zeros(1600), 4)
    assert torch.equal(silent, torch.full((8, 80), spectrogram.SILENCE))
    assert spectrogram.griffin_lim(silent).abs().max() < 1e-4
    frames = spectrogram.log_mel(sines(), 4)
    assert frames.min() == pytest.approx(spectrogram.SILENCE) and frames.max() > 1


def test_a_band_is_higher_where_the_pitch_is() -> None:
    loudest = [spectrogram.log_mel(sines(pitches=(pitch,)), 1)[40].argmax().item() for pitch in (200, 400, 900, 3000)]
    assert loudest == sorted(set(loudest))


@pytest.mark.parametrize("original", [Waveform(sines()), sweep()], ids=["sines", "sweep"])
def test_griffin_lim_gives_the_sound_back(original: Waveform) -> None:
    frames = spectrogram.log_mel(original.samples, 4)
    again = spectrogram.griffin_lim(frames)
    assert len(again) == len(frames) * 200
    distance = spectrogram.distance(spectrogram.log_mel(again, 4), frames)
    assert distance < 12 < spectrogram.distance(spectrogram.log_mel(noise().samples, 4), frames) / 2


def test_the_distance_is_in_decibels() -> None:
    """Ten times the amplitude is 20 dB, at every band."""
    quiet, loud = (spectrogram.log_mel(volume * noise().samples, 4) for volume in (0.1, 1.0))
    assert spectrogram.distance(quiet, loud) == pytest.approx(20, abs=0.01)
    assert spectrogram.distance(loud, loud) == 0
    assert spectrogram.distance(loud[::2], loud) < 12, "the first is stretched to the length of the second"


# Augmentation


def test_augmented_recordings_differ_but_resemble() -> None:
    audio, value = Audio(**SMALL), sweep(2.0)
    plain, generator = audio.preprocess(value), seeded()
    varied = [audio.preprocess(value, train=True, generator=generator) for _ in range(30)]
    assert len({len(frames) for frames in varied}) > 5, "the tempo never changes"
    for frames in varied:
        assert frames.shape[1] == 80 and len(frames) % 4 == 0 and 0.8 < len(frames) / len(plain) < 1.2
        assert frames.isfinite().all() and 3 < spectrogram.distance(frames, plain) < 30
    stretched = [torch.nn.functional.interpolate(f.T[None], size=len(plain))[0].T for f in varied]
    mean = torch.stack(stretched).mean(dim=0)
    assert torch.corrcoef(torch.stack([mean.flatten(), plain.flatten()]))[0, 1] > 0.8


def test_augmentation_is_decided_by_its_generator() -> None:
    audio = Audio(**SMALL)
    one, same, other = (audio.preprocess(sweep(), train=True, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and (one.shape != other.shape or not torch.equal(one, other))


def test_augmentation_can_be_switched_off_or_down() -> None:
    plain = Audio(**SMALL).preprocess(sweep())
    off = Audio(augment=0.0, **SMALL).preprocess(sweep(), train=True, generator=seeded())
    assert torch.equal(off, plain)
    low, high = (
        Audio(augment=strength, **SMALL).preprocess(sweep(), train=True, generator=seeded()) for strength in (0.2, 1.0)
    )
    assert 0 < spectrogram.distance(low, plain) < spectrogram.distance(high, plain)


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_recording_can_be_augmented(seed: int) -> None:
    frames = Audio(**SMALL).preprocess(sweep(0.03), train=True, generator=seeded(seed))
    assert frames.shape == (4, 80) and frames.isfinite().all()


# Tokenizer


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_a_token_is_four_frames_and_several_codes(num_codebooks: int) -> None:
    audio = Audio(width=16, num_codebooks=num_codebooks, levels=(4, 3))
    frames = audio.preprocess(sweep())
    codes = audio.tokenizer.encode(torch.stack([frames, frames]))
    assert audio.vocab_size == 12 and codes.shape == (2, 20, num_codebooks) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 12
    assert audio.tokenizer.decode(codes).shape == (2, 80, 80)
    assert audio.from_codes(codes[0]).seconds == 1


def test_a_codebook_is_a_token_behind_the_one_before() -> None:
    plain, audio = (Audio(width=16, num_codebooks=3, levels=(4, 3), delay=delay) for delay in (False, True))
    frames = plain.preprocess(sweep())
    codes, late = plain.codes(frames), audio.codes(frames)
    assert codes.shape == (20, 3) and late.shape == (22, 3)
    for k in range(3):
        assert torch.equal(late[k : k + 20, k], codes[:, k])
    assert not late[:2, 2].any() and not late[20:, 0].any()
    assert torch.equal(audio.from_codes(late).samples, plain.from_codes(codes).samples)
    assert audio.recipe()[0]["tokens_behind"] == 1 and plain.recipe()[0]["tokens_behind"] == 0
    assert audio.report([sweep()]) == plain.report([sweep()])


def test_the_pace_is_from_a_targets_token_to_the_next() -> None:
    audio = Audio(width=16, pace=0.25)
    assert audio.code_positions(3)[:, 0].tolist() == [0, 0.25, 0.5]
    assert audio.source_positions(torch.zeros(12, 80))[:, 0].tolist() == [0, 1, 2]
    assert not Audio(width=16).code_positions(3).is_floating_point()


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_what_ended_before_all_codebooks_began_is_a_sound(tokens: int) -> None:
    audio = Audio(width=16, num_codebooks=3, levels=(4, 3), delay=True)
    assert audio.from_codes(torch.ones(tokens, 3, dtype=torch.long)).seconds == 0.05


def test_the_longest_recording_fits_with_its_delay() -> None:
    audio = Audio(max_seconds=0.5, width=16, num_codebooks=3, levels=(4, 3), delay=True)
    tensor = audio.preprocess(Waveform(torch.ones(8000)))
    assert len(audio.codes(tensor)) == audio.max_length == 12 and len(tensor) == audio.source_sizes[-1]


def test_every_code_can_be_reached_and_told_apart() -> None:
    tokenizer = Audio(width=16, num_codebooks=2, levels=(4, 3)).tokenizer
    every = torch.cartesian_prod(torch.arange(12), torch.arange(12))
    latents = tokenizer.quantizer.indices_to_codes(every[None])[0]
    assert len(latents.unique(dim=0)) == 144


def test_training_lowers_the_loss_and_the_distance() -> None:
    audio = Audio(**SMALL)
    values = [Waveform(sines(0.5, pitches=(pitch,))) for pitch in (200, 400, 800, 1600)]
    before = audio.report(values)
    progress = list(audio.fit(values, steps=60, seed=0))
    after = audio.report(values)
    assert [p["step"] for p in progress] == list(range(1, 61)) and progress[-1]["steps"] == 60
    assert progress[-1]["loss"] < 0.9 * progress[0]["loss"]
    assert after["log_spectral_distance"] < before["log_spectral_distance"]
    assert after["tokens_per_second"] == 20
    assert after["bits_per_second"] == pytest.approx(20 * 2 * math.log2(1000))
    assert after["codes_used"] >= 1 and after["codebook_usage"] == pytest.approx(after["codes_used"] / 2000)


def test_there_must_be_recordings() -> None:
    with pytest.raises(ValueError, match="no recording to fit"):
        list(Audio(**SMALL).fit([]))
    with pytest.raises(ValueError, match="no recording to report"):
        Audio(**SMALL).report([])


def test_compare_saves_pairs_of_spectrograms(tmp_path: Path) -> None:
    Audio(**SMALL).compare([sweep(), sweep(0.5)], str(tmp_path / "compare.png"))
    assert PIL.Image.open(tmp_path / "compare.png").size == (2 * 80, 2 * 4 * 82)


@pytest.mark.parametrize(
    "wrong",
    [{"max_seconds": 0}, {"num_codebooks": 0}, {"augment": 2}, {"augment": -0.1}, {"vocoder": "wavenet"}],
    ids=str,
)
def test_arguments_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"^audio (needs .* not|has no vocoder 'wavenet': use one of griffin-lim)"):
        Audio(**{**SMALL, **wrong})


def test_another_vocoder_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    def beep(frames: Tensor) -> Tensor:
        heard.append(frames.shape)
        return torch.full((200 * len(frames),), 0.25)

    monkeypatch.setitem(modality.VOCODERS, "beep", beep)
    audio = Audio(vocoder="beep", **SMALL)
    made = audio.from_codes(torch.zeros(3, 2, dtype=torch.long))
    assert heard == [(12, 80)] and torch.equal(made.samples, torch.full((2400,), 0.25))
    assert audio.config()["vocoder"] == "beep" and torch.equal(audio.load(audio.save(made)).samples, made.samples)


# Metrics


def test_metrics_are_perfect_on_itself_and_worse_the_less_alike() -> None:
    audio, value = Audio(**SMALL), sweep()
    softly = Waveform(value.samples + 0.01 * noise().samples)
    same, near, far = (audio.metrics(it, value)["lsd"].value for it in (value, softly, noise()))
    assert same == 0 and 0 < near < far / 2
    assert audio.metrics(value, value)["duration_error"].value == 0
    assert audio.metrics(sweep(0.6), value)["duration_error"].value == pytest.approx(0.4)


def test_metrics_forgive_tempo_and_sample_rate() -> None:
    audio = Audio(**SMALL)
    slow = audio.metrics(sweep(1.5), sweep())["lsd"].value
    assert slow < audio.metrics(noise(1.5), sweep())["lsd"].value / 4
    other_rate = audio.metrics(Waveform(sines(rate=48_000), 48_000), Waveform(sines()))
    assert other_rate["lsd"].value < 4 and other_rate["duration_error"].value == 0


# Judge


def test_texts_are_compared_by_their_words() -> None:
    assert judge.normalised("Press 1, PLEASE!  Don't — wait.") == "press one please don't wait"


def test_without_its_packages_the_judge_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "installed", lambda: False)
    assert Audio(**SMALL).judge([sweep()], [sweep()], ["a sweep"]) == {}


def test_the_judge_counts_wrong_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "installed", lambda: True)
    monkeypatch.setattr(judge, "transcribe", lambda values: ["Please hold.", ""])
    scores = Audio(**SMALL).judge([sweep()] * 2, [sweep()] * 2, ["please hold on", "press 2"])
    assert [(score.value, score.weight) for score in scores["judge_wer"]] == [(pytest.approx(1 / 3), 3), (1, 2)]
    assert [score.value for score in scores["judge_cer"]] == [pytest.approx(3 / 14), 1]


@pytest.mark.skipif(not judge.installed(), reason="needs the packages of the extra `eval`")
@pytest.mark.skipif(not PROMPTS.exists(), reason="needs the starter data")
def test_the_judge_understands_english() -> None:
    prompts = [sample for sample in index(PROMPTS).samples if "en-phone.ogg" in sample.members]
    texts = {sample.key: json.loads(sample.read("json"))["text"]["en"] for sample in prompts}
    prompt = max(prompts, key=lambda sample: (len(texts[sample.key]), sample.key))
    audio = Audio(**SMALL)
    value = audio.load(prompt.read("en-phone.ogg"))
    scores = audio.judge([value, noise()], [value, value], [texts[prompt.key]] * 2)
    spoken, hissed = scores["judge_wer"]
    assert spoken.value < 0.5 < hissed.value and spoken.weight == len(judge.normalised(texts[prompt.key]).split())
