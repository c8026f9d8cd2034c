"""The audio modality: see `modality.Audio` for the plug-in and `waveform.Waveform` for its values."""

from modalities.audio.modality import Audio
from modalities.audio.waveform import Waveform

__all__ = ["Audio", "Waveform"]
