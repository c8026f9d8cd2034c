"""Images: continuous patches (or a timm backbone) in, codes of an FSQ auto-encoder out."""

from modalities.image.modality import Image

__all__ = ["Image"]
