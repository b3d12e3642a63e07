"""Models: Haiku networks from images in [0, 1] to logits."""

from llrflow.models import classic, resnet

__all__ = ["classic", "resnet"]
