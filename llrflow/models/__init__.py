"""Models: networks from images in [0, 1] to logits, Haiku's or a plugin's."""

from llrflow.models import classic, convnext, denoise, python, resnet, vit

__all__ = ["classic", "convnext", "denoise", "python", "resnet", "vit"]
