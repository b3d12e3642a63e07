"""Text of others does nothing to a terminal, a spreadsheet or a page."""

import pytest

from llrflow.base.harmless import csv_cell, markdown_cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", "␛[31mred␛]0;title␇"),
        ("\x9b31m\x7f\x00\r", "\ufffd31m␡␀␍"),
        ("a\u202egpj.exe", "a\ufffdgpj.exe"),
        ("ε ≤ 8/255\tη\n", "ε ≤ 8/255\tη\n"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("value", ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\r=1"])
def test_a_formula_is_text(value):
    assert csv_cell(value) == f"'{value}"


@pytest.mark.parametrize("value", [-1.5, None, "-1.5", "+3", "-inf", "a = b", "", "worst case"])
def test_what_is_none_stays(value):
    assert csv_cell(value) is value


def test_markdown_cell():
    assert markdown_cell("<script>a</script> <!-- --> 1 < 2 <= 3") == "&lt;script>a&lt;/script> &lt;!-- --> 1 < 2 <= 3"
    assert markdown_cell("a|b\nc [x](http://y) ![z](w)") == "a\\|b c [x]\\(http://y) ![z]\\(w)"
