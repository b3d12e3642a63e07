"""The messages in docs/troubleshooting.md are messages of the code."""

import ast
import re


def texts(path):
    """The constant parts of all strings of a module; those of one string are joined by a mark."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "\0".join(part.value for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_heading_is_a_message_of_the_code(docs, repository):
    said = [text for path in repository.glob("llrflow/**/*.py") for text in texts(path)]
    headings = re.findall(r"^### (`+)(.+)\1$", (docs / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 30
    for _, heading in headings:
        parts = [part.strip(" ;,") for part in heading.split("...") if part.strip(" ;,")]
        for part in parts:
            assert any(part in text for text in said), f"nothing in the code says {part!r}"
