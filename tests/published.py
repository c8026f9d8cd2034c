"""Small language models by chance in the files that `save_pretrained` of transformers writes, with tokenizers."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny import COLOURS, SHAPES

DIM, DEPTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, THETA = 48, 2, 4, 2, 16, 80, 5e5
BEGIN, END = "<|begin|>", "<|end|>"
TEXTS = [f"{article} {colour} {shape}" for article in ("a", "un") for colour in COLOURS for shape in SHAPES]


def tokenizer() -> Tokenizer:
    """Byte-level, with special tokens in front of the others and behind them, and an added one that is none."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=[BEGIN], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens([END])
    made.add_tokens(["<think>"])
    return made


def published(folder: Path, architecture: str, *, tied: bool = False, shards: bool = False) -> tuple[Path, Any]:
    """The folder of a Qwen3 or a Llama, and the model itself."""
    import transformers

    torch.manual_seed(0)
    tokens = tokenizer()
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=tokens.get_vocab_size() + 5, hidden_size=DIM, intermediate_size=HIDDEN, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"}, tie_word_embeddings=tied,
        bos_token_id=tokens.token_to_id(BEGIN), eos_token_id=[tokens.token_to_id(END)], pad_token_id=None,
    )  # fmt: skip
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # norms of all ones would hide a norm that is left out
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "1GB")
    tokens.save(str(folder / "tokenizer.json"))
    return folder, model
