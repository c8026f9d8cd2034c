"""Generation against transformers at equal dimensions and tokens, and continuous against static batches.

    python -m benchmarks.generate [captions|compiled|transcripts|batches|bandwidth …] [--preset mini] [--pairs 8]

On one thread (THREADS=2 for two), random weights: captions of one picture, greedy, against a Qwen3 with the same
weights, whose tokens have to be the same; recordings of 5 to 10 s to text against Whisper, which pads them to 30 s;
16 requests of mixed lengths, a row given to the next one as it ends against batches that wait for their longest; and
how much of the memory's bandwidth the weights and caches that are read make up, over sizes of a batch.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
import transformers
from torch import Tensor

from anyxform.cache import advance, prefill
from anyxform.compiled import CompiledStep
from anyxform.field import Field
from anyxform.generate import generate
from anyxform.modality import Modality
from anyxform.model import PRESETS, Transformer
from anyxform.quantize import Dtype, prepare
from anyxform.request import Generated, Request
from anyxform.sampling import Sampling
from anyxform.sequence import Example, Source, Target, marker, pack, to_axes
from benchmarks import starter
from benchmarks.compare import Comparison, calibration, compare, report

TOKENS = 32
"""Of a caption, and of a transcript."""
LENGTHS = (4, 96, 6, 12, 8, 5, 16, 64, 10, 4, 24, 7, 128, 9, 5, 32)
"""Tokens of the 16 requests, in the order in which they come: many short ones and a few long."""
WAYS: tuple[Dtype, ...] = ("fp32", "bf16", "int8")
STEPS: tuple[tuple[Dtype, str], ...] = (*((it, "") for it in WAYS), *((it, ", compiled") for it in WAYS))


@torch.no_grad()
def model_of(preset: str, modalities: dict[str, Modality]) -> Transformer:
    """Random weights, the same each time; larger than at the start of a training, when answers repeat one token."""
    torch.manual_seed(0)
    conditions = {marker(name): number for number, name in enumerate(modalities)}
    model = starter.model(preset, modalities, conditions).eval()
    for block in model.blocks:
        for part in (block.attention.qkv, block.attention.out, block.mlp.gate_up, block.mlp.down):
            part.weight *= 8
        block.attention.q_norm.weight *= 2
    return model


def answered(
    model: Transformer, modalities: dict[str, Modality], requests: Sequence[Request], **options: Any
) -> list[Generated]:
    size = options.pop("batch_size", 64)
    return generate(model, modalities, requests, Sampling(**options), batch_size=size)


# Captions


def picture(modalities: dict[str, Modality], seed: int) -> Request:
    """A picture to caption; its patches stand in a line, as Qwen3 counts on one axis."""
    image = modalities["image"]
    values = image.preprocess(image.example(torch.Generator().manual_seed(seed)))
    return Request(
        (Source("image", values, torch.arange(len(image.source_positions(values)))[:, None]),), Field("text")
    )


def qwen3(model: Transformer, vocab_size: int) -> Any:
    """transformers' decoder with the weights of our stack and text head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    size = model.config()
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=size["dim"], intermediate_size=size["hidden_dim"],
        num_hidden_layers=size["depth"], num_attention_heads=size["num_heads"],
        num_key_value_heads=size["num_kv_heads"], head_dim=size["head_dim"], rms_norm_eps=size["norm_eps"],
        rope_parameters={"rope_theta": size["rope_theta"], "rope_type": "default"}, tie_word_embeddings=True,
    )  # fmt: skip
    peer = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for layer, block in zip(peer.model.layers, model.blocks, strict=True):
            own, attention = layer.self_attn, block.attention
            projections = [own.q_proj, own.k_proj, own.v_proj]
            for projection, weight in zip(projections, attention.qkv.weight.split(attention.sizes)):
                projection.weight.copy_(weight)
            for projection, weight in zip([layer.mlp.gate_proj, layer.mlp.up_proj], block.mlp.gate_up.weight.chunk(2)):
                projection.weight.copy_(weight)
            for theirs, ours in [
                (own.q_norm, attention.q_norm), (own.k_norm, attention.k_norm), (own.o_proj, attention.out),
                (layer.mlp.down_proj, block.mlp.down), (layer.input_layernorm, block.norm1),
                (layer.post_attention_layernorm, block.norm2),
            ]:  # fmt: skip
                theirs.weight.copy_(ours.weight)
        peer.model.norm.weight.copy_(model.norm.weight)
        peer.model.embed_tokens.weight.copy_(model.targets["text"].embedding[0, :vocab_size])
    return peer


@torch.no_grad()
def their_caption(peer: Any, model: Transformer, request: Request, tokens: int) -> Tensor:
    """What `generate` writes behind the prefix that our front end embeds, which sees itself both ways as ours does."""
    x = model.embed(pack([_prefix(request)], model.condition_ids))[None]
    both_ways = torch.zeros(1, 1, x.shape[1], x.shape[1])
    read = peer.model(inputs_embeds=x, attention_mask=both_ways, use_cache=True)
    first = peer.lm_head(read.last_hidden_state[:, -1]).argmax(dim=-1)
    prompt = torch.cat([torch.zeros(1, x.shape[1], dtype=torch.long), first[:, None]], dim=1)
    ids = peer.generate(
        prompt, attention_mask=torch.ones_like(prompt), past_key_values=read.past_key_values, do_sample=False,
        max_new_tokens=tokens - 1, eos_token_id=None,
    )  # fmt: skip
    return ids[0, x.shape[1] :]


def _prefix(request: Request) -> Example:
    empty = Target("text", torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1, dtype=torch.long), 0, False)
    return Example("request", ">text", request.sources, (marker("text"),), empty)


def captions(preset: str, modalities: dict[str, Modality], pairs: int) -> list[Comparison]:
    """One picture at a time, each way of keeping weights against transformers in fp32."""
    source = model_of(preset, modalities)
    peer = qwen3(source, modalities["text"].vocab_size)
    requests = [picture(modalities, seed) for seed in range(4)]
    theirs = [their_caption(peer, source, request, TOKENS).tolist() for request in requests]
    found = []
    for dtype, step in STEPS:
        model = prepare(model_of(preset, modalities), dtype)
        model.decode_step = CompiledStep(model) if step else None
        ours = partial(_one_by_one, model, modalities, requests)
        same = sum(a == b for own, other in zip(ours(), theirs) for a, b in zip(own, other)) / (4 * TOKENS)
        if dtype == "fp32" and same < 1:
            raise AssertionError(f"{same:.0%} of the tokens are those of transformers, not all")
        name = f"captions, batch 1, {preset}, {dtype}{step} against fp32, {same:.0%} of the tokens the same"
        found.append(
            compare(
                name,
                _counting(ours),
                _counting(lambda: [their_caption(peer, source, it, TOKENS) for it in requests]),
                unit="tokens/s",
                pairs=pairs,
            )
        )
    return found


def compiled(preset: str, modalities: dict[str, Modality], pairs: int) -> list[Comparison]:
    """The same captions with a compiled step against without; the time that compiling takes is printed."""
    found, requests = [], [picture(modalities, seed) for seed in range(4)]
    for dtype in WAYS:
        eager, other = (prepare(model_of(preset, modalities), dtype) for _ in range(2))
        other.decode_step = CompiledStep(other)
        print(f"{preset}, {dtype}: compiled in {_seconds(partial(_one_by_one, other, modalities, requests)):.1f} s")
        name = f"captions, batch 1, {preset}, {dtype}: compiled step against without"
        sides = (_counting(partial(_one_by_one, model, modalities, requests)) for model in (other, eager))
        found.append(compare(name, *sides, unit="tokens/s", pairs=pairs))
    return found


def _one_by_one(model: Transformer, modalities: dict[str, Modality], requests: Sequence[Request]) -> list[list[int]]:
    return [answered(model, modalities, [it], length=TOKENS)[0].codes[:, 0].tolist() for it in requests]


def _counting(work: Callable[[], Sequence[Any]]) -> Callable[[], float]:
    return lambda: sum(len(it) for it in work())


# Transcripts


def transcripts(preset: str, modalities: dict[str, Modality], pairs: int) -> list[Comparison]:
    """Recordings in memory to tokens, features and all; Whisper has half of the layers in each of its parts."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    from modalities.audio import Audio
    from modalities.audio.waveform import Waveform

    modalities = {**modalities, "audio": Audio(max_seconds=10.0)}
    audio, size = modalities["audio"], PRESETS[preset]
    recordings = [
        torch.randn(16_000 * seconds, generator=torch.Generator().manual_seed(seconds)) / 9 for seconds in (5, 6, 8, 10)
    ]
    extractor = WhisperFeatureExtractor(feature_size=80)
    start = modalities["text"].vocab_size
    config = WhisperConfig(
        vocab_size=start + 1, d_model=size["dim"], encoder_layers=size["depth"] // 2,
        decoder_layers=size["depth"] // 2, encoder_attention_heads=size["num_heads"],
        decoder_attention_heads=size["num_heads"], encoder_ffn_dim=4 * size["dim"], decoder_ffn_dim=4 * size["dim"],
        num_mel_bins=80, eos_token_id=None, bos_token_id=start, pad_token_id=start, decoder_start_token_id=start,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = WhisperForConditionalGeneration(config).eval()
    peer.generation_config.update(eos_token_id=None, suppress_tokens=None, begin_suppress_tokens=None)

    @torch.no_grad()
    def theirs() -> list[Tensor]:
        features = (
            extractor(it.numpy(), sampling_rate=16_000, return_tensors="pt").input_features for it in recordings
        )
        return [
            peer.generate(it, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS)[0, -TOKENS:]
            for it in features
        ]

    def ours(model: Transformer, **options: Any) -> list[Tensor]:
        values = (audio.preprocess(Waveform(it, 16_000)) for it in recordings)
        requests = [Request((Source("audio", it, audio.source_positions(it)),), Field("text")) for it in values]
        return [answered(model, modalities, [request], **options)[0].codes for request in requests]

    found = []
    for dtype, step in STEPS:
        model = prepare(model_of(preset, modalities), dtype)
        model.decode_step = CompiledStep(model) if step else None
        name = f"recordings of 5 to 10 s to text, {preset}, {dtype}{step} against Whisper in fp32"
        own = _counting(partial(ours, model, length=TOKENS))
        found.append(compare(name, own, _counting(theirs), unit="tokens/s", pairs=pairs))
    at_once = partial(ours, prepare(model_of(preset, modalities), "fp32"), align_weight=1.0)
    name = f"recordings of 5 to 10 s, {preset}, fp32, what they spell against Whisper's text in fp32"
    sides = (lambda: float(len(at_once()))), (lambda: float(len(theirs())))
    return [*found, compare(name, *sides, unit="recordings/s", pairs=pairs)]


# Batches


def mixed(modalities: dict[str, Modality]) -> list[Request]:
    """16 pictures and texts whose answers have given lengths: the last token of each is known."""
    requests = []
    for number, length in enumerate(LENGTHS):
        known, keep = torch.zeros(length, 1, dtype=torch.long), torch.arange(length) == length - 1
        requests.append(replace(picture(modalities, number), known=known, keep=keep))
    return requests


@torch.no_grad()
def static(model: Transformer, modalities: dict[str, Modality], requests: Sequence[Request], size: int) -> list[Tensor]:
    """The textbook's batches: as many requests as fit, all of them until the longest has ended."""
    head, answers = model.targets["text"], []
    for start in range(0, len(requests), size):
        group = requests[start : start + size]
        longest = max(len(it.known) for it in group if it.known is not None)
        cache = prefill(model, [_prefix(it) for it in group], longest)
        offsets, states, codes = to_axes(modalities["text"].code_positions(longest)), cache.marker, []
        for place in range(longest):
            codes.append(head.logits(states)[..., :-1].argmax(dim=-1))
            sees = torch.ones(len(group), 1, place + 1, dtype=torch.bool)
            states = advance(model, cache, head.embed(codes[-1])[:, None], offsets[place : place + 1], place, sees)[
                :, 0
            ]
        answers += list(torch.stack(codes, dim=1))
    return [codes[: len(it.known)] for codes, it in zip(answers, requests) if it.known is not None]


def batches(preset: str, modalities: dict[str, Modality], pairs: int) -> list[Comparison]:
    """16 requests, 4 and 8 rows at a time, continuously and statically."""
    found, requests = [], mixed(modalities)
    for dtype in ("fp32", "int8"):
        model = prepare(model_of(preset, modalities), dtype)
        alone = [answered(model, modalities, [it])[0].codes for it in requests]
        for size in (4, 8):
            ours = partial(_answers, model, modalities, requests, size)
            if dtype == "fp32" and not all(map(torch.equal, ours(), alone)):
                raise AssertionError("a batch gives something else than each request alone")
            theirs = partial(static, model, modalities, requests, size)
            name = f"16 requests of 4 to 128 tokens, {size} at a time, {preset}, {dtype}: continuous against static"
            found.append(compare(name, _counting(ours), _counting(theirs), unit="tokens/s", pairs=pairs, warmup=1))
            print(found[-1], flush=True)
    return found


def _answers(model: Transformer, modalities: dict[str, Modality], requests: list[Request], size: int) -> list[Tensor]:
    return [it.codes for it in answered(model, modalities, requests, batch_size=size)]


# Bandwidth


def read_bandwidth() -> float:
    """GB/s at which one pass over 256 MB reads, the best of five."""
    block = torch.zeros(2**26)
    return max(4 * block.numel() / _seconds(block.sum) for _ in range(5)) / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def step_bytes(model: Transformer, rows: int, slots: int) -> int:
    """What a step has to read: the stack's and the head's weights once, each row's keys and values."""
    text, size = model.targets["text"], model.config()
    parts = [*model.blocks.parameters(), *model.blocks.buffers()]
    parts += [*text.int8_heads.buffers()] if text.int8_heads is not None else [text.head]
    cache = 2 * len(model.blocks) * rows * slots * size["num_kv_heads"] * size["head_dim"]
    return sum(it.numel() * it.element_size() for it in parts) + cache * model.norm.weight.element_size()


def bandwidth(preset: str, modalities: dict[str, Modality], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Milliseconds a step, and how much of the bandwidth its bytes make up, for sizes of a batch."""
    found, most = [], read_bandwidth()
    for dtype, compiles in STEPS:
        model = prepare(model_of(preset, modalities), dtype)
        model.decode_step = CompiledStep(model) if compiles else None
        for rows in sizes:
            requests = [picture(modalities, seed) for seed in range(rows)]
            few, many = (_step_seconds(model, modalities, requests, length) for length in (8, 40))
            step = (many - few) / 32
            slots = len(_prefix(requests[0])) + 24
            rate = step_bytes(model, rows, slots) / step / 1e9
            found.append(
                {"step": dtype + compiles, "rows": rows, "ms": 1e3 * step, "gb_per_s": rate, "share": rate / most}
            )
            print(
                f"{preset}, {dtype}{compiles}, {rows} rows: {1e3 * step:.2f} ms a step, {rows / step:,.0f} tokens/s, "
                f"{rate:.1f} GB/s, {rate / most:.2f} of {most:.1f}",
                flush=True,
            )
    return found


def _step_seconds(
    model: Transformer, modalities: dict[str, Modality], requests: Sequence[Request], length: int
) -> float:
    return min(_seconds(lambda: answered(model, modalities, requests, length=length)) for _ in range(3))


COMPARED = {"captions": captions, "compiled": compiled, "transcripts": transcripts, "batches": batches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*COMPARED, "bandwidth"]
    parser.add_argument("parts", nargs="*", metavar="|".join(every))  # argparse would hold a default to its choices
    parser.add_argument("--preset", choices=list(PRESETS), default="mini")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="sizes of a batch (bandwidth)"
    )
    options = parser.parse_args()
    options.parts = options.parts or every
    if unknown := set(options.parts) - set(every):
        parser.error(f"there is no part {unknown.pop()}: give some of {', '.join(every)}")
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    transformers.logging.set_verbosity_error()  # it repeats remarks at every call
    before, modalities = calibration(), starter.modalities()
    results = [
        it
        for part in options.parts
        if part in COMPARED
        for it in COMPARED[part](options.preset, modalities, options.pairs)
    ]
    sweep = bandwidth(options.preset, modalities, options.rows) if "bandwidth" in options.parts else []
    report(results, before, preset=options.preset, bandwidth=sweep)


if __name__ == "__main__":
    main()
