"""Datasets, batches, augmentations and mixing; importing this registers the built-in ones."""

from llrflow.data import augment, color, crops, datasets, mix, rand_augment

__all__ = ["augment", "color", "crops", "datasets", "mix", "rand_augment"]
