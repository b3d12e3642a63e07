"""Errors a user can act on: each says where, what came, and what to do."""

from __future__ import annotations


class LlrflowError(Exception):
    """Base of every error llrflow raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(LlrflowError):
    """Wrong input: one line `where: got; fix`, exit code 2."""

    exit_code = 2

    def __init__(self, where: str, got: str, fix: str = "") -> None:
        self.where, self.got, self.fix = where, got, fix
        super().__init__(f"{where}: {got}" + (f"; {fix}" if fix else ""))


class SpecError(InputError, ValueError):
    """A spec (or a component's configuration) that cannot be used as it stands."""


class DataError(InputError):
    """A dataset that is missing, damaged or inconsistent with the spec."""


class PluginError(InputError):
    """A plugin that cannot be imported or breaks the component contract."""


class CheckpointError(InputError):
    """A run folder without an intact checkpoint, or one that does not fit the spec."""


def line_of(error: Exception) -> str:
    """The first line of what a library says, the last of another process's traceback that it says; about 200 characters
    at most. The type of an error that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shortened(lines[-1] if "Traceback (most recent call last)" in lines[0] else lines[0])


def shortened(text: str, most: int = 200) -> str:
    """A text of more than so many characters without its end, and a sign that there is more: no word is cut."""
    if len(text) <= most:
        return text
    whole = text[: most + 1].rsplit(maxsplit=1)[0]
    return f"{whole if len(whole) <= most else text[:most]} ..."


class ThreatError(LlrflowError, AssertionError):
    """A perturbation left the threat model: always a bug in an attack, never bad input."""


class NonFiniteError(LlrflowError):
    """The training loss stopped being finite."""
