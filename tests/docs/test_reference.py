"""The reference has a page for everything that there is, and what it shows can be used."""

import copy
import re
import subprocess
import sys

import click
import pytest
import yaml

import llrflow
from llrflow.components.registry import KINDS, entries
from llrflow.spec.schema import Spec


@pytest.fixture(scope="module")
def components(pages):
    """(kind, type) of everything registered, the repository's plugins included."""
    return [(kind, name) for kind in KINDS for name in entries(kind)]


def test_every_component_has_a_page_with_all_its_fields(pages, components, repository):
    assert {("term", "elle_a"), ("gradient", "awp"), ("attack", "pgd")} <= set(components)
    for kind, name in components:
        page = pages[f"components/{kind}/{name}.md"]
        fields = entries(kind)[name].cls.model_fields
        assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(fields), (kind, name)
        assert f"({kind}/{name}.md)" in pages[f"components/{kind}.md"]
    registered = "".join(path.read_text() for path in repository.glob("plugins/*/*.py"))
    for kind, name in re.findall(r'@register\("(\w+)", "(\w+)"\)', registered):
        assert "from the plugin" in pages[f"components/{kind}/{name}.md"]


def test_every_example_is_a_part_of_a_valid_spec(pages, components, repository, tmp_path):
    from llrflow_docs.gallery import components_of

    (tmp_path / "networks.py").write_text("def small(classes, image_shape): ...")
    quickstart = llrflow.load_spec(repository / "specs" / "quickstart.yaml").model_dump()
    for kind, name in components:
        page = pages[f"components/{kind}/{name}.md"].partition("## Example")[2]
        shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
        if "plugins" in shown:
            own = entries(kind)[name].origin
            shown["plugins"] = [str(tmp_path / "networks.py") if own == "llrflow" else own]
        spec = llrflow.load_spec(merged(quickstart, shown))
        assert kind == "dataset" or (kind, name) in components_of(spec)


def merged(below, above):
    """As `extends` merges: mappings key by key, but for one with another type."""
    if not (isinstance(below, dict) and isinstance(above, dict)) or below.get("type") != above.get("type"):
        return copy.deepcopy(above)
    return {**below, **{key: merged(below[key], value) if key in below else value for key, value in above.items()}}


def test_every_command_has_a_page_with_all_its_options(pages):
    from llrflow.cli import COMMANDS, cli

    assert {f"commands/{name}.md" for name in COMMANDS} <= set(pages)

    def check(context):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            inner = click.Context(command, info_name=name, parent=context)
            page = pages[f"commands/{inner.command_path.removeprefix('llrflow ').replace(' ', '-')}.md"]
            if isinstance(command, click.Group):
                check(inner)
                continue
            for parameter in (p for p in command.params if not getattr(p, "hidden", False)):
                assert parameter.name.upper() in page or parameter.opts[0] in page or parameter.metavar in page

    check(click.Context(cli, info_name="llrflow"))


def test_every_spec_is_in_the_gallery_with_its_head(pages, repository):
    files = [*repository.glob("specs/**/*.yaml"), *repository.glob("plugins/*/*.yaml")]
    assert len(files) > 40
    shown = "".join(text for name, text in pages.items() if name.startswith("specs/") and "index" not in name)
    for path in files:
        assert f"## `{path.relative_to(repository)}`" in shown
        assert f"[{path.relative_to(repository)}](" in pages["specs/index.md"]
        assert path.read_text().rstrip().rpartition("\n")[2] in shown


def test_every_block_of_the_spec_is_described(pages):
    from llrflow_docs.blocks import paths

    page = pages["spec.md"]
    assert len(paths()) == len(set(paths()))
    assert {name for name in Spec.model_fields if f"| `{name}` |" in page} == set(Spec.model_fields)
    assert {"sweep.rung", "objective.perturbations.NAME", "objective.terms.NAME", "train.batch_norm"} <= set(paths())
    for path in filter(None, paths()):
        assert f"\n## `{path}`\n" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows if not row[-1].rstrip(" |")] == []


def test_every_public_name_is_described(pages):
    found = re.findall(r"^### llrflow\.(\w+)$", pages["python.md"], re.MULTILINE)
    assert found == sorted(llrflow.__all__)
    assert "0x" not in pages["python.md"]


def test_text_means_nothing_to_markdown():
    from llrflow_docs.prose import escape, flow, markdown, sources

    assert escape("|l(x_a)| <= `a|b_c` * arXiv:1907.02610") == (
        r"\|l(x\_a)\| \<= `a|b_c` \* [arXiv:1907.02610](https://arxiv.org/abs/1907.02610)"
    )
    assert markdown("One.\n\n    a = b\n\nTwo.") == "One.\n\n```text\na = b\n```\n\nTwo."
    assert sources("l (Qin et al. 2019, Eq. 5), as Croce & Hein 2020; Ross & Doshi-Velez 2018") == [
        "Qin et al. 2019",
        "Croce & Hein 2020",
        "Ross & Doshi-Velez 2018",
    ]
    assert flow({"a": (1, 2.5), "b": None}) == "{a: [1, 2.5], b: null}"


def test_links_between_files_become_links_between_pages(repository):
    from llrflow_docs.links import relink

    text = "[a](../plugins/awp/README.md) [b](../specs/methods/llr.yaml) [c](spec.md#values) "
    assert relink(
        f"{text}[d](../CHANGELOG.md) [e](https://x.y/z.md)", repository / "docs" / "methods.md", repository
    ) == (
        "[a](reference/plugins/awp.md) [b](reference/specs/specs-methods.md#specsmethodsllryaml) [c](spec.md#values) "
        "[d](reference/changelog.md) [e](https://x.y/z.md)"
    )
    assert relink("[m](../../docs/methods.md)", repository / "plugins" / "awp" / "README.md", repository) == (
        "[m](../../methods.md)"
    )


def test_blocks_without_a_language_get_theirs():
    from llrflow_docs import language_of

    assert language_of("llrflow run a.yaml") == "console"
    assert language_of("# a.yaml\nextends: b.yaml\nname: c") == "yaml"
    assert language_of("import jax, llrflow\nx = 1  # x") == "python"
    assert language_of("g(delta; x) = | l(x + delta) - l(x) |") == "none"


def test_links_of_the_pages_in_the_repository_lead_somewhere(repository):
    files = [*repository.glob("*.md"), *repository.glob("docs/*.md"), *repository.glob("plugins/*/*.md")]
    for path in files:
        for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", path.read_text()):
            place = (path.parent / target).resolve()
            made = place.is_relative_to(repository / "docs" / "reference")  # there only once the site is built
            assert place.exists() and not made, f"{path.relative_to(repository)}: {target}"


def test_every_page_is_in_the_table_of_contents(docs):
    listed = set(re.findall(r"^[\w/-]+$", (docs / "index.md").read_text(), re.MULTILINE))
    assert {path.stem for path in docs.glob("*.md")} - {"index"} <= listed


def test_a_link_that_leads_nowhere_is_found(docs, tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">x</a><a href="b.html#y"></a><img src="c.svg"><a href="//x.y">')
    (tmp_path / "b.html").write_text('<p id="x"><a href="#x"></a><a href="a.html"></a>')
    done = subprocess.run([sys.executable, docs / "check_links.py", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (1, ["a.html: b.html#y", "a.html: c.svg"])


@pytest.mark.long
def test_the_site_builds_without_a_warning(docs, tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-n", "-W", "--keep-going", docs, tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert (done.returncode, done.stderr) == (0, "")
    check = [sys.executable, docs / "check_links.py", tmp_path / "site"]
    assert subprocess.run(check, capture_output=True, text=True).stdout == "no broken links\n"
