"""Text that may be anybody's (names, messages, values of files that were handed out), harmless where it is shown."""

from __future__ import annotations

import re
from typing import Any

_UNSEEN = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}
"""Control characters but tab and line feed, with pictures of them: terminals obey the ones up to 0x9f (colours,
titles, the clipboard), and show text in another order after the others (Boucher and Anderson 2021, arXiv:2111.00169).
"""


def printable(text: str) -> str:
    """What a terminal prints and does not obey."""
    return text.translate(_UNSEEN)


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins as one gets an apostrophe in front.

    Numbers stay, and so does text that is one (OWASP, "CSV Injection").
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def markdown_cell(text: str) -> str:
    """A cell of a Markdown table, in one line, without HTML, links and pictures of its own."""
    line = printable(" ".join(text.split())).replace("|", "\\|").replace("](", "]\\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
