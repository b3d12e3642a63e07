"""The plugin that docs/plugins.md writes works where the page says it goes."""

import re

from llrflow.components.signatures import METHODS


def test_every_method_of_every_kind_is_there_with_its_arguments(docs):
    page = (docs / "plugins.md").read_text()
    methods, arguments = page[page.index("## Other kinds") : page.index("## Where")].split("What they are given")
    for kind, known in METHODS.items():
        (row,) = (line for line in methods.splitlines() if re.match(rf"\| .*`{kind}`", line))
        for method, taken in known.items():
            inside = "body(h, classes, batch_statistics)" if kind == "model" else f"{method}({', '.join(taken)})"
            assert f"`{inside}`" in row, kind
            for name in {"h" if name == "images" else name for name in taken}:
                assert re.search(rf"^\|[^|]*`{name}`[^|]*\|[^|]*`{kind}`", arguments, re.MULTILINE), (kind, name)


def test_the_first_plugin(docs, repository, llrflow_command, data_dir, tmp_path):
    page, here = (docs / "plugins.md").read_text(), tmp_path
    (here / "specs").symlink_to(repository / "specs")
    for name in ("confidence.py", "calm.yaml"):
        block = re.search(rf"^```(?:python|yaml)\n# {re.escape(name)}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        (here / name).write_text(block[1])
    commands = re.findall(r"^    llrflow ((?:plugins check|plan) \S+)", page, re.MULTILINE)
    assert [line.split()[-1] for line in commands] == ["confidence.py", "calm.yaml"]
    code, out, err = llrflow_command(*commands[0].split(), cwd=here)
    assert code == 0, out + err
    code, out, err = llrflow_command(*commands[1].split(), "--set", f"data.dir={data_dir}", cwd=here)
    assert code == 0, out + err
