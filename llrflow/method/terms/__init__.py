"""Terms: pure per-example functions `term(probe, delta) -> [B]`, penalty and search objective alike."""

from llrflow.method.terms import classification, gradient, linearity

__all__ = ["classification", "gradient", "linearity"]
