"""Links between files of the repository, as links between pages of the site."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)#\s]+)(#[^)\s]*)?(?=\))")


def page_of(path: Path, root: Path) -> str | None:
    """The page (below docs/, with `#anchor` of a spec) that shows a file of the repository, if there is one."""
    inside = path.relative_to(root)
    if inside.parts[0] == "docs" and inside.suffix == ".md":
        return PurePosixPath(*inside.parts[1:]).as_posix()
    if inside.suffix == ".yaml" and inside.parts[0] in ("specs", "plugins"):
        group = "plugins" if inside.parts[0] == "plugins" else "-".join(inside.parts[:-1])
        return f"reference/specs/{group}.md#{anchor_of(path, root)}"
    if inside.parts[0] == "plugins" and inside.name in ("README.md", f"{inside.parts[1]}.py"):
        return f"reference/plugins/{inside.parts[1]}.md"
    return {"CHANGELOG.md": "reference/changelog.md", "README.md": "index.md"}.get(inside.as_posix())


def anchor_of(path: Path, root: Path) -> str:
    """The anchor that MyST gives to the heading of a spec."""
    return re.sub(r"[^\w-]", "", path.relative_to(root).as_posix().lower())


def relink(text: str, source: Path, root: Path) -> str:
    """Markdown of a file with links to the pages that show what it links to, from the page that shows it."""
    here = page_of(source, root)
    assert here is not None, source

    def link(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[1]))
        page = page_of(target, root) if target.is_relative_to(root) else None
        return os.path.relpath(page, PurePosixPath(here).parent) + (match[2] or "") if page else match[0]

    return _LINK.sub(link, text)
