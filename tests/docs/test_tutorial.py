"""docs/tutorial.md, word for word: its files are written, its commands run in order and print what it shows."""

import re
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"(?:<!-- (file|exit): (.+?) -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+")
BOXES = str.maketrans(dict.fromkeys("│┃|", " "))


def agree(shown, printed):
    """Whether a printed line is the one shown: words alike; percentages within 3, counts within 6 and a tenth."""
    for want, got in zip(shown, printed, strict=False):
        if want == "...":
            return True
        if NUMBER.sub("", want) != NUMBER.sub("", got):
            return False
        for a, b in zip(NUMBER.findall(want), NUMBER.findall(got), strict=True):
            a, b = float(a.replace(",", "")), float(b.replace(",", ""))
            if abs(a - b) > (3 if "%" in want else 0 if a < 10 else 6 + a / 10):
                return False
    return len(shown) <= len(printed)


def words(line):
    return line.translate(BOXES).split()


def missing(shown, printed):
    """The lines of a block that no printed line agrees with."""
    lines = [words(line) for line in printed.splitlines()]
    return [line for line in shown.splitlines() if not any(agree(words(line), other) for other in lines)]


def test_what_is_shown_is_compared():
    printed = "│ pgd        │        63.06% │ 57.96% to 67.88% │      255 │      28 │\n  ok      shape: [B] = [6]\n"
    assert missing("│ pgd │ 63.33% │ 58.24% to 68.15% │ 253 │ 25 │\nok shape: ...", printed) == []
    for wrong in (
        "pgd 67.33%",
        "fgsm 63.06%",
        "pgd 63.06% 57.96% to 67.88% 255 40",
        "ok shape: [C]",
        "ok shape: [B] = [7]",
    ):
        assert missing(wrong, printed) == [wrong]


@pytest.mark.slow
def test_the_tutorial_holds_word_for_word(repository, start, tmp_path):
    blocks = BLOCK.findall((repository / "docs" / "tutorial.md").read_text())
    assert [language for *_, language, _ in blocks].count("sh") >= 8
    printed, ran = None, []
    for key, value, language, body in blocks:
        if key == "file":
            (tmp_path / value).write_text(body)
        elif language == "sh":
            process = start(["-ec", f"PATH={Path(sys.executable).parent}:$PATH\n{body}"], tmp_path, ["bash"])
            out, err = process.communicate(timeout=240)
            assert process.returncode == (int(value) if key == "exit" else 0), f"{body}{out}{err}"
            printed = out + err
            ran.append(body)
        elif language == "text" and printed is not None:
            assert missing(body, printed) == [], f"{ran[-1]} printed\n{printed}"
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert {path.parent.name for path in Path(tmp_path).glob("runs/*/run.json")} == {"first", "standard", "mine"}
