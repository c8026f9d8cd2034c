"""Architectures that a library has for one task each, of as many layers and the same width as our model.

They read the same preprocessed tensors and write the same subwords. Letters: B examples, T tokens, F frames.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from anyxform.modality import Modality
from anyxform.sequence import Example

LONGEST = 130
"""Subwords that a peer may write."""


class Peer(nn.Module):
    """An encoder-decoder of transformers: `inputs` makes its keyword arguments from sources' tensors."""

    def __init__(self, model: Any, inputs: Callable[[Sequence[Tensor]], dict[str, Tensor]], vocab_size: int) -> None:
        super().__init__()
        self.model, self.inputs, self.end, self.start = model, inputs, vocab_size, vocab_size + 1

    def forward(self, examples: Sequence[Example]) -> Tensor:
        """The mean cross-entropy of the targets, the end included."""
        texts = [torch.cat([it.target.codes[:, 0], torch.tensor([self.end])]) for it in examples]
        labels = pad_sequence(texts, batch_first=True, padding_value=-100)
        return self.model(**self.inputs([it.sources[0].values for it in examples]), labels=labels).loss

    @torch.no_grad()
    def write(self, sources: Sequence[Tensor], longest: int = 48) -> list[Tensor]:
        """The likeliest next subword again and again."""
        inputs = self.inputs(sources)
        mask = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
        encoded = self.model.get_encoder()(**inputs)
        ids = torch.full((len(sources), 1), self.start)
        ended = torch.zeros(len(sources), dtype=torch.bool)
        while ids.shape[1] <= longest and not ended.all():
            logits = self.model(encoder_outputs=encoded, decoder_input_ids=ids, **mask).logits[:, -1]
            ids = torch.cat([ids, logits[:, : self.end + 1].argmax(-1, keepdim=True)], dim=1)
            ended |= ids[:, -1] == self.end
        return [row[: (row == self.end).nonzero()[0, 0] if (row == self.end).any() else None] for row in ids[:, 1:]]


def _ids(vocab_size: int) -> dict[str, Any]:
    start = vocab_size + 1
    return {
        "vocab_size": vocab_size + 2,
        "eos_token_id": vocab_size,
        "bos_token_id": start,
        "pad_token_id": start,
        "decoder_start_token_id": start,
    }


def captioner(modalities: dict[str, Modality], dim: int, depth: int, heads: int) -> Peer:
    """A ViT with GPT-2 as its decoder."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    image: Any = modalities["image"]
    ids = _ids(modalities["text"].vocab_size)
    start = ids.pop("decoder_start_token_id")
    encoder = ViTConfig(
        hidden_size=dim, num_hidden_layers=depth // 2, num_attention_heads=heads, intermediate_size=4 * dim,
        image_size=image.size, patch_size=image.patch_size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = GPT2Config(
        n_embd=dim, n_layer=depth - depth // 2, n_head=heads, n_positions=LONGEST, add_cross_attention=True,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = start, start
    return Peer(VisionEncoderDecoderModel(config), lambda x: {"pixel_values": torch.cat(list(x))}, ids["eos_token_id"])


def transcriber(modalities: dict[str, Modality], dim: int, depth: int, heads: int) -> Peer:
    """Whisper's encoder and decoder, for recordings as long as ours instead of 30 s."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    audio: Any = modalities["audio"]
    ids = _ids(modalities["text"].vocab_size)
    example = audio.preprocess(audio.example(torch.Generator().manual_seed(0)))
    tokens = len(audio.source_positions(example))
    frames = -(-len(example) // tokens) * audio.max_length
    config = WhisperConfig(
        d_model=dim, encoder_layers=depth // 2, decoder_layers=depth - depth // 2, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * dim, decoder_ffn_dim=4 * dim, num_mel_bins=example.shape[1],
        max_source_positions=frames // 2, max_target_positions=LONGEST, **ids,
    )  # fmt: skip

    def inputs(values: Sequence[Tensor]) -> dict[str, Tensor]:
        quiet = float(min(value.min() for value in values))
        padded = torch.full((len(values), frames, example.shape[1]), quiet)
        for row, value in zip(padded, values):
            row[: min(frames, len(value))] = value[:frames]
        return {"input_features": padded.transpose(1, 2)}

    return Peer(WhisperForConditionalGeneration(config), inputs, ids["eos_token_id"])


def translator(modalities: dict[str, Modality], dim: int, depth: int, heads: int) -> Peer:
    """T5."""
    from transformers import T5Config, T5ForConditionalGeneration

    ids = _ids(modalities["text"].vocab_size)
    config = T5Config(
        d_model=dim, d_kv=dim // heads, d_ff=-(-8 * dim // 3 // 64) * 64, num_layers=depth // 2,
        num_decoder_layers=depth - depth // 2, num_heads=heads, feed_forward_proj="gated-silu", dropout_rate=0.0, **ids,
    )  # fmt: skip

    def inputs(values: Sequence[Tensor]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(value) for value in values])
        padded = pad_sequence(list(values), batch_first=True, padding_value=ids["pad_token_id"])
        return {"input_ids": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()}

    return Peer(T5ForConditionalGeneration(config), inputs, ids["eos_token_id"])


PEERS: dict[str, Callable[..., Peer]] = {
    "captions": captioner,
    "transcripts": transcriber,
    "translations": translator,
}
