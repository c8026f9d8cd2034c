"""A published language model in the layout of Hugging Face: what its files say, and where its tensors belong.

Files are JSON and safetensors: nothing is unpickled, imported or run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyxform.checkpoint import model_tensors, read_json
from anyxform.modality import Modality, get_modality
from anyxform.model import Transformer
from anyxform.parts import part_of
from anyxform.sequence import marker

ARCHITECTURES = {"LlamaForCausalLM": {"qk_norm": False}, "Qwen3ForCausalLM": {"qk_norm": True}}
"""Those whose block is ours."""
PLAIN: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "mlp_bias": (False,), "hidden_act": ("silu",), "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,), "pretraining_tp": (1,), "quantization_config": (),
}  # fmt: skip
"""Values, beside none, of the keys of a published config.json that would change what is computed."""
CONDITIONS = "condition_embedding.weight"
EMBEDDINGS, HEAD = TABLES = "model.embed_tokens.weight", "lm_head.weight"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Published:
    """A language model in the layout of Hugging Face: config.json, tokenizer.json, safetensors in one file or several.

    Its blocks become the stack; its embeddings, and its head, the tables of the modality that has its tokenizer. The
    token that ends its texts becomes the end of a target, and the one that begins them, if there is one, the marker
    that asks for this modality.
    """

    folder: Path
    config: dict[str, Any]

    def __post_init__(self) -> None:
        """ValueError if its layers compute anything that ours do not."""
        config, where = self.config, f"{self.folder}/config.json"
        if (name := self.architecture) not in ARCHITECTURES:
            raise ValueError(f"{where} is of the architecture {name}: supported are {', '.join(ARCHITECTURES)}")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(f"{where} scales rotary positions (rope_type={kind!r}): this is not supported")
        if any(layer != "full_attention" for layer in config.get("layer_types") or ()):
            raise ValueError(f"{where} has layers of sliding windows (layer_types): this is not supported")
        for key, plain in PLAIN.items():
            value = config.get(key, rope.get(key))
            if value is not None and value not in plain:
                raise ValueError(f"{where} has {key}={value!r}: this is not supported")

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["none"])[0])

    @property
    def sizes(self) -> dict[str, Any]:
        config = self.config
        rope = config.get("rope_parameters") or {}
        try:
            dim, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            return {
                "dim": dim,
                "depth": int(config["num_hidden_layers"]),
                "num_heads": heads,
                "num_kv_heads": int(config.get("num_key_value_heads") or heads),
                "head_dim": int(config.get("head_dim") or dim // heads),
                "hidden_dim": int(config["intermediate_size"]),
                "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
                "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
                "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
                **ARCHITECTURES[self.architecture],
            }
        except KeyError as error:
            raise ValueError(f"{self.folder}/config.json lacks {error.args[0]}: it is not whole") from None
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{self.folder}/config.json has a size that is none: {error}") from None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [{"name": self.folder.resolve().name, "architecture": self.architecture}]

    @property
    def directions(self) -> list[str]:
        return []

    def modality(self, name: str, **arguments: Any) -> Modality | None:
        kind = get_modality(name)
        found = kind.published(self.folder)
        return kind(**{**arguments, **found}) if found else None

    @torch.no_grad()
    def fill(self, model: Transformer, modalities: Mapping[str, Modality]) -> set[str]:
        language = [it for it in modalities.values() if self._is_of(it)]
        places, tables = self._places(model), dict[str, Tensor]()
        for name, tensor in self._tensors():
            if name in TABLES:
                if language:
                    tables[name] = tensor
                continue
            if name not in places:
                raise ValueError(f"{self.folder} has {name}, for which the stack has no place: this is not supported")
            place = places.pop(name)
            if place.shape != tensor.shape:
                expected = f"by its config.json {tuple(place.shape)}"
                raise ValueError(f"{self.folder}: {name} has shape {tuple(tensor.shape)}, but {expected}")
            place.copy_(tensor)
        if places:
            raise ValueError(f"{self.folder} lacks {next(iter(places))}: the checkpoint is not whole")
        behind = tuple(f"blocks.{number}." for number in range(self.sizes["depth"], len(model.blocks)))
        stack = {name for name in model_tensors(model) if part_of(name) == "stack"}
        taken = {name for name in stack if not name.startswith(behind)}
        return taken.union(*(self._fill_tables(model, modality, tables) for modality in language))

    def _is_of(self, modality: Modality) -> bool:
        """Whether a modality has the tokenizer that lies there."""
        try:
            found, config = type(modality).published(self.folder), modality.config()
        except ValueError:  # one that cannot be used is not what it has
            return False
        return bool(found) and all(config.get(key) == value for key, value in found.items())

    def _fill_tables(self, model: Transformer, modality: Modality, tables: Mapping[str, Tensor]) -> set[str]:
        """Embeddings of sources and of targets, the head, the end of a target, and the marker in front of it."""
        name, target = modality.name, model.targets[modality.name]
        embeddings = tables.get(EMBEDDINGS)
        head = embeddings if self.sizes["tie_embeddings"] else tables.get(HEAD)
        if embeddings is None or head is None:
            raise ValueError(f"{self.folder} lacks its embeddings or its head: the checkpoint is not whole")
        if (rows := modality.adopt(model.front_ends[name], embeddings)) is None:
            return set()
        end, begin = (self._token(f"{it}_token_id", len(embeddings)) for it in ("eos", "bos"))
        rows = rows if end is None else torch.cat([rows, torch.tensor([end])])
        target.embedding[0, : len(rows)] = embeddings[rows].to(target.embedding)
        target.head[0, : len(rows)] = head[rows].to(target.head)
        model.source_embedding[name].zero_()  # sources begin as the embeddings that the stack knows
        places = ("front_ends.{}.", "source_embedding.{}", "targets.{}.embedding", "targets.{}.head")
        taken = {it for it in model_tensors(model) if it.startswith(tuple(place.format(name) for place in places))}
        if begin is not None and (condition := marker(name)) in model.condition_ids:
            model.condition_embedding.weight[model.condition_ids[condition]] = embeddings[begin].to(target.embedding)
            taken.add(f"{CONDITIONS}.{condition}")
        return taken

    def _token(self, key: str, count: int) -> int | None:
        """The first of the tokens that a key of config.json names, if there is one among `count`."""
        value = self.config.get(key)
        number = value[0] if isinstance(value, list) and value else value
        return number if isinstance(number, int) and 0 <= number < count else None

    def _places(self, model: Transformer) -> dict[str, Tensor]:
        """Where each of its tensors belongs in the stack, by its name."""
        places: dict[str, Tensor] = {"model.norm.weight": model.norm.weight}
        for number, block in enumerate(model.blocks[: self.sizes["depth"]]):
            attention, mlp = block.attention, block.mlp
            own = {
                **dict(zip(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                           attention.qkv.weight.split(attention.sizes))),
                **dict(zip(("mlp.gate_proj", "mlp.up_proj"), mlp.gate_up.weight.chunk(2))),
                "self_attn.o_proj": attention.out.weight,
                "mlp.down_proj": mlp.down.weight,
                "input_layernorm": block.norm1.weight,
                "post_attention_layernorm": block.norm2.weight,
            }  # fmt: skip
            if self.sizes["qk_norm"]:
                own |= {"self_attn.q_norm": attention.q_norm.weight, "self_attn.k_norm": attention.k_norm.weight}
            places |= {f"model.layers.{number}.{name}.weight": place for name, place in own.items()}
        return places

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by its name, one at a time, but for tables of angles, which are computed here."""
        for path in self._files():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 - it is no dict
                        if not name.endswith("rotary_emb.inv_freq"):
                            yield name, file.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path} cannot be read ({error}): copy it again") from error

    def _files(self) -> list[Path]:
        if not (self.folder / INDEX).is_file():
            if not (self.folder / SINGLE).is_file():
                raise ValueError(f"{self.folder} has no {SINGLE}: weights in other formats are not read")
            return [self.folder / SINGLE]
        index = read_json(self.folder / INDEX)
        try:
            return [self.folder / Path(name).name for name in sorted(set(index["weight_map"].values()))]
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{self.folder / INDEX} is damaged: copy it again") from None
