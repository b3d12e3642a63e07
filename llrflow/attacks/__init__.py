"""Attacks: components that search for adversarial perturbations of a fixed model."""

from llrflow.attacks import gradient

__all__ = ["gradient"]
