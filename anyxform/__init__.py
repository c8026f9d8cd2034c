"""anyxform: one Transformer, trained on any mixture of modalities, that converts anything into anything."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from anyxform.pipeline import Pipeline
    from anyxform.quantize import Dtype

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    path: "str | Path" = "starter", *, device: str | None = None, dtype: "Dtype" = "fp32", compile: bool = False
) -> "Pipeline":
    """Load a checkpoint as a callable, ``ax = load(path); ax("cat.png", to="text")``: see `anyxform.pipeline.load`."""
    from anyxform.pipeline import load  # torch is imported only once a model is wanted

    return load(path, device=device, dtype=dtype, compile=compile)
