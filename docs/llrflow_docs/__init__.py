"""A small Sphinx extension: the reference is made from the code, below docs/reference, whenever the site is built."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import yaml

from llrflow_docs.blocks import spec_page
from llrflow_docs.commands import command_pages
from llrflow_docs.components import component_pages, load_repository_plugins
from llrflow_docs.gallery import spec_pages, text_pages, uses
from llrflow_docs.links import relink
from llrflow_docs.python_api import python_page

ROOT = Path(__file__).parents[2]
COMMANDS = ("llrflow", "make", "python", "pip", "source", "git", "cd", "sphinx-build")


def pages(root: Path = ROOT) -> dict[str, str]:
    """Every page of the reference, by path below docs/reference."""
    plugins = load_repository_plugins(root)
    components = component_pages(plugins, uses(root))
    return {**components, **command_pages(), **spec_page(), **python_page(), **spec_pages(root), **text_pages(root)}


def write(folder: Path, texts: dict[str, str]) -> None:
    """Write pages that changed and delete those that are no more, so that a second build is quick."""
    for path in [path for path in folder.rglob("*.md") if path.relative_to(folder).as_posix() not in texts]:
        path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def language_of(code: str) -> str:
    """The language of a code block that names none: the pages of this repository indent their blocks."""
    first = code.lstrip("# ").split()
    if first and first[0] in COMMANDS:
        return "console"
    try:
        data = yaml.safe_load(code)
        if isinstance(data, dict) and all(str(key).isidentifier() for key in data):
            return "yaml"
    except yaml.YAMLError:
        pass
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return "none"
    statements = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return "python" if any(isinstance(node, statements) for node in tree.body) else "none"


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    from docutils import nodes

    def relinked(app: Any, name: str, content: list[str]) -> None:
        if not name.startswith("reference/"):
            content[0] = relink(content[0], ROOT / "docs" / f"{name}.md", ROOT)

    def highlighted(app: Any, doctree: Any) -> None:
        for block in doctree.findall(nodes.literal_block):
            if block.get("language", "none") == "none":
                block["language"] = language_of(block.astext())

    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference", pages()))
    app.connect("source-read", relinked)
    app.connect("doctree-read", highlighted)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
