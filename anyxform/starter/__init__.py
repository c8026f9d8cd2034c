"""Builds the starter dataset: real pictures, recordings and texts that package registries hold. See `build.build`."""
