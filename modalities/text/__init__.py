"""The text modality: see `modality.Text`."""

from modalities.text.modality import Text

__all__ = ["Text"]
