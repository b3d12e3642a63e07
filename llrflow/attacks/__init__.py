"""Attacks: components that search for adversarial perturbations of a fixed model."""

from llrflow.attacks import (
    apgd,
    auto_attack,
    carlini_wagner,
    carlini_wagner_linf,
    deepfool,
    fab,
    gradient,
    square,
    transfer,
)

__all__ = [
    "apgd",
    "auto_attack",
    "carlini_wagner",
    "carlini_wagner_linf",
    "deepfool",
    "fab",
    "gradient",
    "square",
    "transfer",
]
