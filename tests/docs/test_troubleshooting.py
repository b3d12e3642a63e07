"""The messages in docs/troubleshooting.md are messages of the code."""

import ast
import re


def texts(path):
    """The strings of a module but its docstrings, `...` for what an f-string puts in."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts | docstrings:
            yield node.value


def test_every_heading_is_a_message_of_the_code(docs, repository):
    said = [text for path in repository.glob("llrflow/**/*.py") for text in texts(path)]
    headings = re.findall(r"^### (`+)(.+)\1$", (docs / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 30
    for _, heading in headings:
        parts = [part.strip() for part in heading.split("...")]
        assert any(part for part in parts)
        message = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(message.search(text) for text in said), f"no string in the code says {heading!r}"
