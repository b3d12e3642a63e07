"""Attacks: components that search for adversarial perturbations of a fixed model."""

from llrflow.attacks import (
    apgd,
    auto_attack,
    carlini_wagner,
    carlini_wagner_linf,
    deepfool,
    fab,
    fast_minimum_norm,
    gradient,
    hop_skip_jump,
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
    "fast_minimum_norm",
    "gradient",
    "hop_skip_jump",
    "square",
    "transfer",
]
