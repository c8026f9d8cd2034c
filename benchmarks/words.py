"""How far off the places are where two words of a recording meet, for a model trained with `train.align_weight`.

    python -m benchmarks.words CHECKPOINT [RECORDINGS]

Recordings are three single words that the starter's synthesizer says in English, of the split `test`, one directly
after the other: so where they meet is known. The words are given; beside the model stand thirds of the recording.
"""

import argparse
import json
import random
import statistics
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from anyxform.align import with_words
from anyxform.dataset import open_datasets
from anyxform.field import Direction, Field
from anyxform.long import Made, Segment
from anyxform.pipeline import Pipeline, load
from modalities.audio.waveform import SAMPLE_RATE, Waveform, at_model_rate

SPOKEN = {"spoken": {"shards": "spoken/{split}-*.tar", "fields": {"text:*": "json.text.*"}}}
SAID, WRITTEN = Field("audio", "en-pico"), Field("text", "en")
SHORTEST = 4
"""Letters of a word."""
WORDS = 3


def single_words(ax: Pipeline) -> list[tuple[str, Tensor]]:
    """Words and their samples at 16 kHz, shuffled."""
    (dataset,) = open_datasets(SPOKEN, ax.modalities, root="data/starter", split="test").values()
    found = []
    for number in range(len(dataset.samples)):
        fields = dataset.fields(number)
        if SAID in fields:
            word = ax.modalities["text"].load(fields[WRITTEN]())
            if " " not in word and len(word) >= SHORTEST:
                found.append((word, at_model_rate(ax.modalities["audio"].load(fields[SAID]()))))
    random.Random(0).shuffle(found)
    return found


def errors(ax: Pipeline, words: list[tuple[str, Tensor]]) -> tuple[list[float], list[float]] | None:
    """Seconds between where words meet and where the model, and where thirds, say so; None: the model cannot say."""
    recording = Waveform(torch.cat([samples for _, samples in words]))
    meet = list(accumulate(len(samples) / SAMPLE_RATE for _, samples in words))[:-1]
    job = ax.job(Direction.parse(f"audio>{WRITTEN}"), [recording])
    if len(job.pieces) != 1:
        return None
    text = " ".join(word for word, _ in words)
    piece = job.pieces[0]
    (made,) = with_words(ax.model, ax.modalities, [job], [Made(text, [Segment(piece.start, piece.end, text)])])
    found = made.segments[0].words
    if not found:
        return None
    thirds = [recording.seconds * number / WORDS for number in range(1, WORDS)]
    return [abs(it.start - at) for it, at in zip(found[1:], meet)], [abs(it - at) for it, at in zip(thirds, meet)]


def summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 3),
        "nine of ten": round(statistics.quantiles(values, n=10)[-1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("recordings", nargs="?", type=int, default=80)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ax = load(options.checkpoint)
    words = single_words(ax)
    threes = [words[n : n + WORDS] for n in range(0, min(len(words), WORDS * options.recordings), WORDS)]
    found = [it for it in (errors(ax, three) for three in threes if len(three) == WORDS) if it]
    ours, thirds = ([error for it in found for error in it[system]] for system in (0, 1))
    print(json.dumps({"recordings": len(found), "model": summary(ours), "thirds": summary(thirds)}))


if __name__ == "__main__":
    main()
