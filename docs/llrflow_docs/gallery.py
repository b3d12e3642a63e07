"""The gallery of specs: every YAML file with what its head says, and the pages of plugins and of the changelog."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from pathlib import Path

import llrflow
from llrflow.components.registry import Component
from llrflow_docs.links import anchor_of, page_of, relink
from llrflow_docs.prose import escape, fence, table

GROUPS = {
    "specs": "Complete runs on images that come with the package, and the large experiments",
    "specs/methods": "Every method on digits: the objective alone differs",
    "specs/models": "Networks in small, on made-up images",
    "specs/datasets": "Dataset, network, threat and evaluation, for `--on`; runs of their own train without a method",
    "specs/recipes": "Recipes as their authors published them; with `--on`, their methods on other datasets",
    "plugins": "Methods whose terms are plugins",
}
"""What stands in each folder; a new folder fails the build until it stands here."""


def spec_files(root: Path) -> list[Path]:
    """Every spec of the repository."""
    return sorted([*root.glob("specs/**/*.yaml"), *root.glob("plugins/*/*.yaml")])


def group_of(path: Path, root: Path) -> str:
    """The folder that a spec is shown with."""
    folder = path.parent.relative_to(root).as_posix()
    return "plugins" if folder.startswith("plugins/") else folder


def spec_pages(root: Path) -> dict[str, str]:
    """A page for each folder of specs, and one that lists them all, by path below the reference."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in spec_files(root):
        groups[group_of(path, root)].append(path)
    pages, sections = {}, ["# Specs", ABOUT]
    for group in sorted(groups, key=list(GROUPS).index):
        name, files = group.replace("/", "-"), groups[group]
        parts = [f"# {group}/", f"{GROUPS[group]}.", *(_section(path, root) for path in files)]
        pages[f"specs/{name}.md"] = "\n\n".join(parts)
        rows = [(f"[{path.relative_to(root)}]({name}.md#{anchor_of(path, root)})", *_short(path)) for path in files]
        sections += [f"## {GROUPS[group]}", table(("spec", "what it is", "result"), rows)]
    names = "\n".join(page.removeprefix("specs/").removesuffix(".md") for page in pages)
    pages["specs/index.md"] = "\n\n".join([*sections, fence(f":hidden:\n\n{names}", "{toctree}")])
    return pages


PLUGINS = """# Plugins of the repository

Methods outside the core, each one file with its spec and test. How to write one: [plugins](../../plugins.md)."""

ABOUT = (
    "Every file can be run as it stands. What was measured stands in its head and "
    "here; *not measured* means that nobody ran it for this project."
)


def head_of(path: Path) -> tuple[str, str]:
    """(prose, commands) of the comment that a spec begins with."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:])
    commands = [line.strip() for line in lines if line.startswith("   ")]
    return "\n".join(line.strip() for line in lines if not line.startswith("   ")), "\n".join(commands)


def body_of(path: Path) -> str:
    """A spec without its head."""
    return "\n".join(itertools.dropwhile(lambda line: line.startswith("#"), path.read_text().splitlines()))


def _short(path: Path) -> tuple[str, str]:
    """First sentence, and what was measured."""
    text = " ".join(head_of(path)[0].split())
    first = re.match(r".*?[^.]\.(?= [A-Z(]|$)", text)
    measured = re.search(r"(?:Measured|Not measured|2 CPU cores).*", text)
    return escape(first[0] if first else text), escape(measured[0] if measured else "")


def _section(path: Path, root: Path) -> str:
    prose, commands = head_of(path)
    parts = [f"## `{path.relative_to(root)}`", escape(prose), fence(commands, "console") if commands else ""]
    return "\n\n".join([*parts, fence(body_of(path), "yaml")])


def uses(root: Path) -> dict[tuple[str, str], list[str]]:
    """Links (from a component's page) to the specs that write a component out, by (kind, type)."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in spec_files(root):
        words = set(re.findall(r"\w+", body_of(path)))
        spec = llrflow.load_spec(path)
        link = f"[{path.relative_to(root)}](/{page_of(path, root)})"
        for kind, name in sorted(components_of(spec)):
            if name in words:
                found[kind, name].append(link)
    return found


def components_of(part: object) -> set[tuple[str, str]]:
    """(kind, type) of everything that a loaded spec chooses."""
    if isinstance(part, Component):
        own = {part.registered_as} if part.registered_as else set()
        return own.union(*(components_of(getattr(part, name)) for name in type(part).model_fields))
    values = part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ()
    return set().union(*map(components_of, values))


def text_pages(root: Path) -> dict[str, str]:
    """The plugins' own pages and the changelog, with links that fit the site, by path below the reference."""
    shown = {path.parent.name: path for path in sorted(root.glob("plugins/*/README.md"))}
    changelog = root / "CHANGELOG.md"
    return {
        **{f"plugins/{name}.md": relink(path.read_text(), path, root) for name, path in shown.items()},
        "plugins/index.md": "\n\n".join((PLUGINS, fence("\n".join(shown), "{toctree}"))),
        "changelog.md": relink(changelog.read_text(), changelog, root),
    }
