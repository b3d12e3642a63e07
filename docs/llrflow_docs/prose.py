"""Docstrings and values as Markdown. Docstrings here are plain text with `code` in backticks, not reStructuredText."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

_SPECIAL = re.compile(r"([\\*_\[\]<>#~|$&])")
_CODE = re.compile(r"(`[^`]+`)")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_SOURCE = re.compile(
    r"[A-Z][\w'-]+(?: [A-Z][\w'-]+)?(?: et al\.| (?:&|and) [A-Z][\w'-]+)?(?: [A-Z][\w'-]+)? (?:19|20)\d\d[a-z]?\b"
)


def escape(text: str) -> str:
    """Prose in which nothing but `code` and arXiv numbers means anything to Markdown."""
    parts = [part if part.startswith("`") else _SPECIAL.sub(r"\\\1", part) for part in _CODE.split(text)]
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", "".join(parts))


def markdown(docstring: str | None) -> str:
    """A docstring as Markdown: paragraphs and lists of prose; what is indented is a block of text."""
    return "\n\n".join(map(_paragraph, re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))))


def _paragraph(text: str) -> str:
    lines = text.splitlines()
    if lines and all(line.startswith("    ") for line in lines):
        return fence(inspect.cleandoc(text))
    # A formula may stand below the line that announces it.
    first = next((n for n, line in enumerate(lines) if line.startswith("    ")), None)
    if first and all(line.startswith("    ") for line in lines[first:]):
        return "\n\n".join((escape("\n".join(lines[:first])), fence(inspect.cleandoc("\n".join(lines[first:])))))
    return "\n".join(re.sub(r"^( *)\\?([-+=])(?! )", r"\1\\\2", escape(line)) for line in lines)


def fence(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown, their line breaks become spaces."""
    lines = [headings, ["---"] * len(headings), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A bar ends a cell even inside code."""
    return _CODE.sub(lambda code: re.sub(r"(?<!\\)\|", r"\\|", code[0]), " ".join(text.split()))


def sources(docstring: str | None) -> list[str]:
    """The papers that a docstring cites, `Qin et al. 2019`, in their order."""
    text = " ".join((docstring or "").split())
    return list(dict.fromkeys(_SOURCE.findall(text)))


def flow(value: Any) -> str:
    """A value as one writes it in YAML on one line."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
