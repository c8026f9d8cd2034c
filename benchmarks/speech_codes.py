"""Word errors that Whisper tiny.en hears in held-out English speech: as it is, and through the codes.

    python -m benchmarks.speech_codes [TOKENIZER] [PHRASES]

Needs the extra `eval`. Telephone prompts of the splits val and test, whose concepts are not in training; or, of the
dataset `phrases` once that is built, as many of the split test.
"""

import sys

from anyxform.checkpoint import load_modality
from anyxform.selection import choose_items
from benchmarks import starter
from modalities.audio import Audio, Waveform
from modalities.audio.spectrogram import griffin_lim


def main(tokenizer: str = str(starter.TOKENIZERS / "audio"), phrases: str = "0") -> None:
    audio = load_modality(tokenizer)
    assert isinstance(audio, Audio)
    found = {**starter.modalities(), "audio": audio}
    if int(phrases):
        said = starter.datasets(found, "test", "phrases")
        items = choose_items(said, found, patterns=["text:en>audio:en-pico"], limit=int(phrases)).items
    else:
        items = starter.english_prompts(found)
    references, texts = [item.reference for item in items], [item.text for item in items]
    frames = [audio.preprocess(value) for value in references]
    for name, values in {
        "originals": references,
        "frames and Griffin-Lim": [Waveform(griffin_lim(each)) for each in frames],
        "codes and Griffin-Lim": [audio.from_codes(audio.codes(each)) for each in frames],
    }.items():
        scores = audio.judge(values, references, texts)["judge_wer"]
        errors = sum(score.value * score.weight for score in scores) / sum(score.weight for score in scores)
        print(f"{name}: word errors {errors:.3f} of {len(values)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
