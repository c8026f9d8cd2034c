"""A training step on the starter's mixture against a padded encoder-decoder (T5) of equal width, depth and examples.

    python -m benchmarks.train_step [preset]

The peer reads the same front ends and predicts the same target tokens (the first codebook of each), in batches of 32
padded to the longest. Both step AdamW, in bf16 autocast. Figures are tokens of sources and targets per second, without
markers and attributes, which the peer has not.
"""

import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from anyxform.model import PRESETS
from anyxform.optim import adamw
from anyxform.rows import balance
from anyxform.sequence import Batch, Example, pack
from anyxform.train import train_step
from benchmarks import starter
from benchmarks.compare import calibration, compare, report

BATCH = 32
TOKENS_PER_ROW = 4096


class Peer(nn.Module):
    """transformers' T5 behind the front ends of each modality, with one vocabulary."""

    def __init__(self, preset: str, modalities: dict) -> None:  # type: ignore[type-arg]
        super().__init__()
        from transformers import T5Config, T5ForConditionalGeneration

        size = PRESETS[preset]
        hidden = -(-8 * size["dim"] // 3 // 64) * 64
        vocabulary = max(m.vocab_size for m in modalities.values()) + 1
        config = T5Config(
            vocab_size=vocabulary, d_model=size["dim"], d_kv=size["dim"] // size["num_heads"], d_ff=hidden,
            num_layers=size["depth"], num_decoder_layers=size["depth"], num_heads=size["num_heads"],
            feed_forward_proj="gated-silu", dropout_rate=0.0, pad_token_id=0,
        )  # fmt: skip
        config.decoder_start_token_id = 0
        self.t5 = T5ForConditionalGeneration(config)
        self.front_ends = nn.ModuleDict(
            {name: modality.front_end(size["dim"]) for name, modality in modalities.items()}
        )

    def forward(self, examples: Sequence[Example]) -> Tensor:
        sources = [torch.cat([self._embed(source) for source in example.sources]) for example in examples]
        lengths = torch.tensor([len(source) for source in sources])
        inputs = pad_sequence(sources, batch_first=True)
        mask = torch.arange(inputs.shape[1]) < lengths[:, None]
        labels = pad_sequence([e.target.codes[:, 0] for e in examples], batch_first=True, padding_value=-100)
        return self.t5(inputs_embeds=inputs, attention_mask=mask.long(), labels=labels).loss

    def _embed(self, source) -> Tensor:  # type: ignore[no-untyped-def]
        return self.front_ends[source.modality](source.values, [len(source.values)])


def packed(examples: Sequence[Example], ids: dict[str, int]) -> list[Batch]:
    return [pack([examples[n] for n in row], ids) for row in balance([len(e) for e in examples], TOKENS_PER_ROW)]


def main(preset: str = "tiny") -> None:
    torch.manual_seed(0)
    threads = int(os.environ.get("THREADS", "1"))
    torch.set_num_threads(threads)
    before = calibration()
    modalities = starter.modalities()
    stream, ids = starter.rows(modalities, condition_dropout=0.0)
    examples = [e for e in starter.examples(stream, 4 * BATCH) if e.sources]
    tokens = sum(len(e.target.codes) + sum(len(source.positions) for source in e.sources) for e in examples)
    model = starter.model(preset, modalities, ids)
    optimizer = adamw(model)
    batches = packed(examples, ids)

    def ours() -> float:
        train_step(model, optimizer, batches, bf16=True)
        return tokens

    peer = Peer(preset, modalities)
    peer_optimizer = adamw(peer)

    def theirs() -> float:
        peer_optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(examples), BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                loss = peer(examples[start : start + BATCH])
            loss.backward()
        peer_optimizer.step()
        return tokens

    result = compare(
        f"training step, {preset}, {len(examples)} examples", ours, theirs, unit="source and target tokens/s", pairs=8
    )
    parameters = sum(p.numel() for p in peer.parameters())
    report([result], before, preset=preset, our_parameters=model.num_parameters(), peer_parameters=parameters)


if __name__ == "__main__":
    main(*sys.argv[1:])
