"""What is wrong with a value, found while pydantic validates it: problems, their places, near names, numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, LiteralString, NoReturn, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


def parse_number(raw: Any) -> float:
    """A float from a number or from text such as `8/255` (exact fraction, nothing is evaluated)."""
    if isinstance(raw, str):
        if re.fullmatch(r"[\d_./eE+-]*\d_\d[\d_./eE+-]*", raw):
            raise invalid("number", "is text to YAML 1.2; write the number without underscores")
        try:
            decimals = [Decimal(part.strip()) for part in raw.split("/", 1)]
            if any(abs(d.adjusted()) > 400 for d in decimals):  # as a Fraction it would fill the memory
                raise OverflowError
            above, *below = map(Fraction, decimals)
            raw = float(above / below[0] if below else above)
        except ZeroDivisionError:
            raise invalid("number", "divides by zero; write a number or a fraction such as 8/255") from None
        except (ArithmeticError, ValueError):
            raise invalid("number", "is not a number; write a number or a fraction such as 8/255") from None
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise invalid("number", "is not a number; write a number or a fraction such as 8/255")
    try:
        number = float(raw)
    except OverflowError:
        raise invalid("number", "is too large; write a smaller number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise invalid("number", "is not finite; write a finite number")
    return number


def invalid(code: str, message: str) -> PydanticCustomError:
    """A validation problem of the value at hand; what follows `; ` in the message is the fix."""
    return PydanticCustomError(cast(LiteralString, code), cast(LiteralString, message))


def raise_at(path: tuple[str | int, ...], value: Any, code: str, message: str) -> NoReturn:
    """Raise a pydantic ValidationError for one problem below the value being validated."""
    error = invalid(code, message)
    raise ValidationError.from_exception_data("spec", [InitErrorDetails(type=error, loc=path, input=value)])


def first_problem(error: ValidationError | PydanticCustomError) -> tuple[tuple[str | int, ...], str, str]:
    """(path, what came at that path, what to do) of the first problem that pydantic found."""
    if isinstance(error, PydanticCustomError):
        message, _, fix = error.message().partition("; ")
        return (), message, fix
    problem = error.errors(include_url=False)[0]
    path = tuple(part for part in problem["loc"] if part != "[key]")
    message, _, fix = problem["msg"].replace("Input should", "should", 1).partition("; ")
    value = repr(problem["input"])
    if problem["type"] == "missing":
        message, fix = "is missing", "add it"
    elif problem["type"] == "int_type" and re.fullmatch(r"'\d+(_\d+)+'", value):
        message, fix = f"= {value} is text to YAML 1.2", "write the number without underscores"
    elif not isinstance(problem["input"], (Mapping, BaseModel)):
        message = f"= {value if len(value) <= 60 else value[:57] + '...'} {message}"
    return path, f"{'.'.join(map(str, path))} {message}".strip(), fix


def suggest(name: Any, known: Any) -> str:
    """`did you mean ...?` with the nearest valid name, or the list of names."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose from {listing(known)}"


def listing(names: Any) -> str:
    """Names in order, joined by commas."""
    return ", ".join(sorted(map(str, names)))


SHOWN = 4
"""Names that `some` shows."""


def some(title: str, names: list[str], separator: str = ", ") -> str:
    """The first few of some names after a title; nothing where there are none."""
    more = f"{separator}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{title}{separator.join(names[:SHOWN])}{more}" if names else ""
