"""Long recordings: word errors of what is heard in windows and merged, and what reading an hour takes.

    python -m benchmarks.long

Held-out English telephone prompts (the splits val and test) are put into one recording: once with their own silences
and pauses, once with every silence taken out, so that each window has to be cut within speech. Whisper tiny.en, from
the extra `eval`, stands in the model's place, as an independent listener with errors of its own. Then the recording is
repeated to an hour of stereo at 44.1 kHz in flac, which is read and cut.
"""

import io
import math
import resource
import time
from collections.abc import Sequence

import jiwer
import numpy as np
import soundfile
import torch
import torchaudio.functional as AF

from anyxform.modality import Piece
from benchmarks import starter
from modalities.audio import Audio, Waveform
from modalities.audio.judge import normalised, transcribe
from modalities.audio.waveform import SAMPLE_RATE
from modalities.audio.windows import FRAME, levels, speech
from modalities.text import Text

FRAME_SAMPLES = round(FRAME * SAMPLE_RATE)


def main() -> None:
    prompts, texts = held_out()
    reference = normalised(" ".join(texts))
    audio, text = Audio(), Text()
    pause = torch.zeros(round(0.8 * SAMPLE_RATE))
    recordings = {
        "with pauses": torch.cat([part for prompt in prompts for part in (prompt.samples, pause)]),
        "without any silence": torch.cat([voiced(prompt.samples) for prompt in prompts]),
    }
    print(f"{len(prompts)} prompts, {len(reference.split())} words")
    tell("each prompt by itself", reference, transcribe(prompts))
    for name, samples in recordings.items():
        pieces = audio.split(Waveform(samples))
        heard = transcribe([piece.value for piece in pieces])
        hard = sum(piece.overlap > 0 for piece in pieces)
        print(f"{name}: {len(samples) / SAMPLE_RATE:.0f} s in {len(pieces)} windows, {hard} of them overlapping")
        tell(f"{name}, merged", reference, [text.join(text.merge(heard, pieces), pieces)])
        if hard:
            tell(f"{name}, not merged", reference, heard)
            tell(f"{name}, windows without overlap", reference, transcribe(apart(samples, audio.max_seconds)))
    read_an_hour(audio, recordings["with pauses"])


def held_out() -> tuple[list[Waveform], list[str]]:
    """The prompts, with what is said."""
    items = starter.english_prompts(starter.modalities())
    return [item.reference for item in items], [item.text for item in items]


def voiced(samples: torch.Tensor) -> torch.Tensor:
    """Nothing but the frames with speech."""
    runs = speech(levels(samples, FRAME_SAMPLES))
    return torch.cat([samples[first * FRAME_SAMPLES : last * FRAME_SAMPLES] for first, last in runs])


def apart(samples: torch.Tensor, seconds: float) -> list[Waveform]:
    return [Waveform(part) for part in samples.split(round(seconds * SAMPLE_RATE))]


def tell(name: str, reference: str, heard: Sequence[str]) -> None:
    print(f"  {name}: word errors {jiwer.wer(reference, normalised(' '.join(heard))):.3f}", flush=True)


def read_an_hour(audio: Audio, samples: torch.Tensor) -> None:
    file = io.BytesIO()
    part = AF.resample(samples, SAMPLE_RATE, 44_100).numpy()
    with soundfile.SoundFile(file, "w", 44_100, 2, format="FLAC") as writer:
        for _ in range(math.ceil(3600 * 44_100 / len(part))):
            writer.write(np.stack([part, part], axis=1))
    before, start = memory(), time.perf_counter()
    value = audio.load(file.getvalue())
    read, after = time.perf_counter() - start, memory()
    pieces: list[Piece] = audio.split(value)
    print(
        f"an hour of stereo at 44.1 kHz ({len(file.getvalue()) / 1e6:.0f} MB): read in {read:.1f} s, "
        f"{after - before:.0f} MB more memory at most, cut into {len(pieces)} windows in "
        f"{time.perf_counter() - start - read:.1f} s"
    )


def memory() -> float:
    """The most that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
