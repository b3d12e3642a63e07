"""Datasets, batches and augmentations; importing this registers the built-in ones."""

from llrflow.data import augment, color, crops, datasets, rand_augment

__all__ = ["augment", "color", "crops", "datasets", "rand_augment"]
