"""Models: Haiku networks from images in [0, 1] to logits."""

from llrflow.models import classic, convnext, denoise, resnet, vit

__all__ = ["classic", "convnext", "denoise", "resnet", "vit"]
