"""Target codes made ahead: members ``KEY.codes.DIGEST.image.noto.npy`` beside the samples' own.

Each is a numpy array ``[T, K]`` of the codes of one field (here ``image:noto``), and names the tokenizer that made it
by its digest: codes of another one are never trained on. Letters: T tokens, K codebooks.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anyxform.field import Field
from anyxform.modality import Modality

if TYPE_CHECKING:
    from anyxform.dataset import Dataset

SHOWN = 16
"""Digits of a digest."""
_ENDING = re.compile(rf"codes\.[0-9a-f]{{{SHOWN}}}(\.[^.]+){{1,2}}\.npy")


def is_codes(ending: str) -> bool:
    """Whether a member with this ending holds codes: it is one of `ending_of`, not just called so."""
    return _ENDING.fullmatch(ending) is not None


def ending_of(field: Field, digest: str) -> str:
    """The ending of the member with a field's codes; lower case, as those of all members are when they are read."""
    return ".".join(filter(None, ("codes", digest, field.modality, field.variant, "npy"))).lower()


def digest_of(modality: Modality) -> str:
    """Of the tokenizer and of all else that decides what a value's codes are."""
    idle = {"decoding"} | modality.training_arguments | modality.source_arguments
    deciding = {key: it for key, it in modality.config().items() if key not in idle}
    found = hashlib.sha256(json.dumps([modality.name, deciding], sort_keys=True).encode())
    for name, tensor in sorted(modality.state().items()):
        found.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:SHOWN]


def to_bytes(codes: Tensor, modality: Modality) -> bytes:
    """Codes ``[T]`` or ``[T, K]`` as a .npy of the smallest numbers that hold them."""
    buffer = io.BytesIO()
    np.save(buffer, codes.reshape(len(codes), -1).numpy().astype(np.min_scalar_type(modality.vocab_size)))
    return buffer.getvalue()


def from_bytes(data: bytes, modality: Modality) -> Tensor:
    """Codes ``[T, K]``. ValueError: it is no .npy, or has what cannot be codes of this modality."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy's reader raises what Python's tokenizer does, and asks for any memory
        raise ValueError(f"the stored codes cannot be read: {error}") from error
    fitting = array.ndim == 2 and array.dtype.kind == "u" and array.shape[1] == modality.num_codebooks
    if not fitting or not 0 < len(array) <= modality.max_length or array.max() >= modality.vocab_size:
        raise ValueError(f"the stored codes, {array.dtype} {array.shape}, are none of {modality.name}")
    return torch.from_numpy(array.astype(np.int64))


def check_codes(datasets: "Mapping[str, Dataset]", modalities: Mapping[str, Modality]) -> None:
    """ValueError: a dataset holds codes that another tokenizer has made."""
    digests: dict[str, str] = {}
    for dataset in datasets.values():
        for shard in dataset.samples.shards:
            for ending in _codes({ending for kind in shard.kinds for ending in kind.endings}):
                _, digest, name, *_ = ending.split(".")
                if name not in modalities:
                    continue
                own = digests.setdefault(name, digest_of(modalities[name]))
                if digest != own:
                    raise ValueError(
                        f"{shard.shard}: its codes of {name} are of another tokenizer ({digest}, and the model's is "
                        f"{own}): encode it again (anyxform data encode), or train on the shards without codes"
                    )


def _codes(endings: set[str]) -> Sequence[str]:
    return sorted(filter(is_codes, endings))
