"""Word errors that Whisper tiny.en hears in held-out English telephone prompts: as they are, and through the codes.

    python -m benchmarks.speech_codes [TOKENIZER]

Needs the extra `eval`. The prompts are those of the splits val and test: their concepts are not in training.
"""

import sys

from anyxform.checkpoint import load_modality
from benchmarks import starter
from modalities.audio import Audio, Waveform
from modalities.audio.spectrogram import griffin_lim


def main(tokenizer: str = str(starter.TOKENIZERS / "audio")) -> None:
    audio = load_modality(tokenizer)
    assert isinstance(audio, Audio)
    items = starter.english_prompts({**starter.modalities(), "audio": audio})
    references, texts = [item.reference for item in items], [item.text for item in items]
    frames = [audio.preprocess(value) for value in references]
    for name, values in {
        "originals": references,
        "frames and Griffin-Lim": [Waveform(griffin_lim(each)) for each in frames],
        "codes and Griffin-Lim": [audio.from_codes(audio.codes(each)) for each in frames],
    }.items():
        scores = audio.judge(values, references, texts)["judge_wer"]
        errors = sum(score.value * score.weight for score in scores) / sum(score.weight for score in scores)
        print(f"{name}: word errors {errors:.3f} of {len(values)} prompts")


if __name__ == "__main__":
    main(*sys.argv[1:])
