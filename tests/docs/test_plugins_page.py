"""The plugin that docs/plugins.md writes works where the page says it goes."""

import re
import textwrap


def test_the_first_plugin(docs, repository, llrflow_command, data_dir, tmp_path):
    page, here = (docs / "plugins.md").read_text(), tmp_path
    (here / "specs").symlink_to(repository / "specs")
    for name in ("confidence.py", "calm.yaml"):
        block = re.search(rf"^    # {re.escape(name)}\n((?:    .*\n|\n)+?)\n(?=    # |\S)", page, re.MULTILINE)
        (here / name).write_text(textwrap.dedent(block[1]))
    commands = re.findall(r"^    llrflow ((?:plugins check|plan) \S+)", page, re.MULTILINE)
    assert [line.split()[-1] for line in commands] == ["confidence.py", "calm.yaml"]
    code, out, err = llrflow_command(*commands[0].split(), cwd=here)
    assert code == 0, out + err
    code, out, err = llrflow_command(*commands[1].split(), "--set", f"data.dir={data_dir}", cwd=here)
    assert code == 0, out + err
