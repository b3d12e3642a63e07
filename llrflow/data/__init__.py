"""Datasets, batches and augmentations; importing this registers the built-in ones."""

from llrflow.data import augment, datasets

__all__ = ["augment", "datasets"]
