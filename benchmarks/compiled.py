"""A training step with compiled blocks against the same step without, on rows of the starter's mixture.

    python -m benchmarks.compiled [preset]

Both sides have the same weights and the same rows of 2,048 tokens, in bf16 autocast. The time of compiling is printed.
"""

import sys
import time

import torch

from anyxform.model import compile_blocks
from anyxform.optim import adamw
from anyxform.sequence import Example, pack
from anyxform.train import train_step
from benchmarks import starter
from benchmarks.compare import calibration, compare, report

TOKENS_PER_ROW = 2048


def main(preset: str = "tiny") -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before = calibration()
    modalities = starter.modalities()
    stream, ids = starter.rows(modalities, tokens_per_row=TOKENS_PER_ROW)
    examples, size = starter.examples(stream, 200), 0
    batches: list[list[Example]] = [[]]
    for example in examples:
        size += len(example)
        if size > TOKENS_PER_ROW:
            size = len(example)
            batches.append([])
        batches[-1].append(example)
    rows = [pack(row, ids, TOKENS_PER_ROW) for row in batches]
    models = [starter.model(preset, modalities, ids) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [adamw(model) for model in models]
    compile_blocks(models[0])

    def step(side: int) -> float:
        train_step(models[side], optimizers[side], rows, bf16=True)
        return sum(row.num_tokens for row in rows)

    started = time.perf_counter()
    step(0)
    seconds = time.perf_counter() - started
    result = compare(f"compiled against eager, {preset}", lambda: step(0), lambda: step(1), unit="tokens/s", pairs=8)
    report([result], before, preset=preset, first_step_seconds=round(seconds, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
