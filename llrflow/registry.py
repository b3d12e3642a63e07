"""Moved: write `from llrflow.plugin import ...`."""

from llrflow.moved import moved

__getattr__ = moved(__name__, "llrflow.components.registry", "llrflow.components.fields", "llrflow.base.validation")
