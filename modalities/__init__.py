"""The modalities that anyxform ships, a module or folder each, found by the entry points `anyxform.modalities`."""
